"""The shipped sweep over methods: what it covers, and a short run of it as a user runs it, with its report."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from amsd.cli.app import app
from amsd.recipe.methods import METHODS
from amsd.sweep.load import load_plan
from amsd.sweep.results import load_sweep
from amsd.sweep.search import grid

SHORT = {
    "search.method.name.choices": '["draft", "ddpo"]',
    "search.optimizer.learning_rate.choices": "[4e-4]",
    "override.schedule.num_inference_steps": "4",
    "override.method.timesteps_per_trajectory": "3",
    "override.optimizer.prompts_per_step": "4",
    "override.optimizer.micro_batch": "4",
    "override.training.steps": "2",
    "override.training.checkpoint_every": "2",
    "override.training.validate_every": "2",
    "override.evaluation.prompts": "2",
    "override.evaluation.samples_per_prompt": "2",
    "override.tracking.trackers": "none",
}


def test_it_covers_every_method_that_ships() -> None:
    points = list(grid(load_plan("methods").sweep.search))
    assert {point["method.name"] for point in points} == set(METHODS)
    assert len(points) == 3 * len(METHODS)


@pytest.mark.slow
def test_a_short_run_and_the_report_that_compares_methods(tmp_path: Path) -> None:
    settings = [part for key, value in SHORT.items() for part in ("--set", f"{key}={value}")]
    outcome = CliRunner().invoke(app, ["sweep", "run", "methods", "--output", str(tmp_path / "sweep"), *settings])
    assert outcome.exit_code == 0, outcome.output
    trials = load_sweep(tmp_path / "sweep").complete
    assert sorted(str(trial.params["method.name"]) for trial in trials) == ["ddpo", "draft"]
    page = CliRunner().invoke(app, ["report", str(tmp_path / "sweep")])
    assert page.exit_code == 0, page.output
    text = (tmp_path / "sweep" / "report.html").read_text(encoding="utf-8")
    assert "network calls" in text
    # 2 steps of 4 trajectories: 3 + 3 forward-equivalents with draft, 4/2 + 3 * 3 with ddpo (three noisy steps).
    assert ">48<" in text
    assert "Adjoint Matching loss" not in text
    assert "KL (nats)" in text
