"""Weights of the loss: a step from which nothing can be learned is said, once, and steps may count differently."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from amsd.diffusion.steps import flow_steps
from amsd.experiment.train import train
from amsd.recipe import load_recipe
from amsd.training.experience import ItemLosses
from amsd.training.methods.adjoint_matching import AMTrainer
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


def constant(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """A reward that has a gradient, of zero."""
    return (images * 0).sum((1, 2, 3)) + 1


@pytest.mark.parametrize(
    ("method", "settings", "reason"),
    [
        ("ram", [], "all rewards are equal"), ("ddpo", [], "all rewards are equal"),
        ("ram", ["reward_multiplier=0"], ""),
        ("am", [], "does not change with the images"), ("draft", [], "does not change with the images"),
        ("refl", [], "does not change with the images"),
    ],
)  # fmt: skip
def test_steps_without_a_gradient_are_said_once(method: str, settings: list[str], reason: str, tmp_path: Path) -> None:
    """A constant reward; lambda = 0 asks for no gradient."""
    assigned = [f"method.name={method}", "training.steps=2", "evaluation.every=0"]
    assigned += [
        "optimizer.weight_decay=0.0",
        f"reward=[{{name = 'python:{__file__}:constant'}}]",
        *(f"method.{each}" for each in settings),
    ]
    train(load_recipe(write_recipe(tmp_path), assigned), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["gradient_norm"] for line in lines if "loss" in line] == [0.0, 0.0]
    said = [line["text"] for line in lines if line.get("notice") == "no-gradient"]
    assert len(said) == bool(reason)
    assert all(reason in text for text in said)


def test_every_item_is_weighed_by_its_step() -> None:
    """The gradient in the prediction is w c^2 times its distance to the target: alike with `prediction`."""
    levels = torch.tensor([1.0, 0.98, 0.9, 0.6, 0.0])
    trainer = AMTrainer.__new__(AMTrainer)
    items = ItemLosses(torch.ones(4), {"index": torch.tensor([0, 2, 1, 1])})
    for name, power in (("control", 0), ("balanced", 1), ("prediction", 2)):
        short = ["schedule.num_inference_steps=4", "method.timesteps_per_trajectory=2"]
        recipe = load_recipe("flow", [f"method.step_weights={name}", *short])
        steps = flow_steps(levels, 1000 * levels[:-1], 1.0)
        trainer.recipe, trainer.problem = recipe, SimpleNamespace(steps=steps)  # type: ignore[assignment]
        weights = trainer.weights(items)
        scale = steps.control_scale[items.logged["index"]].abs()
        torch.testing.assert_close(weights / weights[0], (scale[0] / scale).pow(power))
