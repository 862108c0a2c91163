"""A step from which nothing can be learned is said, once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from amsd.experiment.train import train
from amsd.recipe import load_recipe
from tests.cli.commands import write_recipe


def test_steps_whose_items_are_all_masked_are_said_once(tmp_path: Path) -> None:
    """At the quantile 0 no item lies below the threshold."""
    settings = ["method.per_sample_threshold_quantile=0.0", "method.outlier_threshold=current"]
    settings += ["optimizer.learning_rate=1e-12", "training.steps=2", "evaluation.every=0"]
    train(load_recipe(write_recipe(tmp_path), settings), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert next(line["masked_share"] for line in lines if "loss" in line) == 1.0
    (said,) = [line["text"] for line in lines if line.get("notice") == "all-masked"]
    assert "All 4 samples of a step were masked" in said
    assert "raise method.per_sample_threshold_quantile" in said


@pytest.mark.parametrize(("multiplier", "told"), [(1e-6, 1), (1e3, 0)])
def test_a_reward_that_is_weak_for_the_learning_rate_is_such_a_case(
    tmp_path: Path, multiplier: float, told: int
) -> None:
    settings = [f"method.reward_multiplier={multiplier}", "optimizer.learning_rate=1e-3", "optimizer.warmup_steps=0"]
    settings += ["method.outlier_threshold=previous", "training.steps=3", "evaluation.every=0"]
    train(load_recipe(write_recipe(tmp_path), settings), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    said = [line["text"] for line in lines if line.get("notice") == "all-masked"]
    assert len(said) == told
    assert all("normalize = true" in text for text in said)
