"""The published table beside new numbers: which cells are comparable, and by how many standard errors they differ."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from amsd.evaluation.benchmark import PROTOCOL, Benchmark
from amsd.evaluation.result import EvaluationResult
from amsd.evaluation.statistics import summarize
from amsd.recipe import Recipe, load_recipe

VALUES = {
    "imagereward": [0.7, 0.8, 0.9],
    "clip-score": [0.28, 0.28, 0.28],
    "hps-v2.1": [0.27, 0.28, 0.29],
    "diversity/dreamsim": [0.3, 0.35, 0.4],
}


def results(recipe: Recipe) -> list[EvaluationResult]:
    metrics = {name: summarize("1", values) for name, values in VALUES.items()}
    return [
        EvaluationResult(setting.name, setting.model_dump(), "i", ("a", "b", "c"), metrics)
        for setting in recipe.evaluation_settings
    ]


def table(*assignments: str) -> Benchmark:
    recipe = load_recipe("sd15-am", [*PROTOCOL, *assignments])
    return Benchmark.of(recipe, results(recipe), results(recipe), "run/step-000200")


def known(benchmark: Benchmark) -> dict[tuple[Any, ...], float]:
    return {(r.model, r.setting, r.metric): r.published for r in benchmark.rows if r.published is not None}


def test_the_protocol_has_four_settings_and_all_columns() -> None:
    recipe = load_recipe("sd15-am", PROTOCOL)
    assert (recipe.evaluation.prompts, recipe.evaluation.samples_per_prompt) == (100, 10)
    settings = {(setting.scheduler, setting.eta) for setting in recipe.evaluation_settings}
    assert settings == {("fine-tuning", 0), ("fine-tuning", 1), ("default", 0), ("default", 1)}


def test_published_numbers_stand_where_they_belong() -> None:
    found = known(table())
    tuned = "run/step-000200 (λ = 100)"
    assert len(found) == 4 * 4  # two etas, fine-tuning scheduler, base and checkpoint, four metrics
    assert found["base", "fine-tuning-eta0-cfg7.5-steps50", "imagereward"] == 0.187
    assert found["base", "fine-tuning-eta1-cfg7.5-steps50", "diversity/dreamsim"] == 0.3471
    assert found[tuned, "fine-tuning-eta1-cfg7.5-steps50", "hps-v2.1"] == 0.2782


@pytest.mark.parametrize(
    ("assignment", "left"),
    [
        ("method.reward_multiplier=31.6", 12),  # published at eta 0 only
        ("method.reward_multiplier=50.0", 8),
        ('reward.0.name="clip-score"', 8),
        ("guidance.guidance_scale=5.0", 0),
        ("schedule.num_inference_steps=40", 0),
        ('model.pretrained="someone/another-model"', 0),
    ],
)
def test_nothing_is_compared_with_what_it_does_not_repeat(assignment: str, left: int) -> None:
    assert len(known(table(assignment))) == left


def test_files_carry_mean_error_and_difference(tmp_path: Path) -> None:
    as_json, as_csv, markdown = table().save(tmp_path)
    rows = json.loads(as_json.read_text(encoding="utf-8"))["rows"]
    row = next(
        r for r in rows if r["model"] == "base" and r["metric"] == "imagereward" and "tuning-eta0" in r["setting"]
    )
    error = 0.1 / 3**0.5  # s.d. of 0.7, 0.8, 0.9 is 0.1
    assert row["mean"] == pytest.approx(0.8)
    assert row["standard_error"] == pytest.approx(error)
    assert row["standard_errors"] == pytest.approx((0.8 - 0.187) / error)
    constant = next(r for r in rows if r["metric"] == "clip-score")
    assert constant["standard_errors"] is None  # no spread, no unit
    with as_csv.open(encoding="utf-8", newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert len(lines) == len(rows) == 2 * 4 * 4
    assert lines[0]["metric"] == "imagereward"
    text = markdown.read_text(encoding="utf-8")
    assert "| base | fine-tuning-eta0-cfg7.5-steps50 | 0.800 ± 0.058 (0.1870, +10.6) |" in text
    assert "| base | default-eta0-cfg7.5-steps50 | 0.800 ± 0.058 |" in text
