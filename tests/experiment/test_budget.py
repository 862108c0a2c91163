"""Budgets end a run at a checkpoint, in good order."""

from __future__ import annotations

from pathlib import Path

import pytest

from amsd.errors import UsageError
from amsd.evaluation.result import saved_results
from amsd.experiment.budget import shares
from amsd.experiment.train import train
from amsd.recipe import load_recipe
from amsd.run_directory import RunDirectory
from tests.experiment.test_train import lines, recipe


def ended(model: Path, run: Path, resume: bool = False, **budget: float) -> tuple[list[int], list[str]]:
    """Checkpoints of a run of six steps, and what it said of its end."""
    training = {"steps": 6, "checkpoint_every": 2, "keep": 5, **budget}
    finished = train(recipe(model, training=training), run, resume=resume)
    assert finished.results or resume
    said = [line["text"] for line in lines(run) if line.get("notice") == "budget"]
    return RunDirectory(run).steps(), said


def test_a_kl_budget_ends_the_run_and_a_resume_goes_no_further(model: Path, tmp_path: Path) -> None:
    steps, said = ended(model, tmp_path / "run", kl_budget=1e-9)
    assert steps == [2]
    assert "training.kl_budget = 1e-09" in said[0]
    assert "step-000002 is kept" in said[0]
    assert ended(model, tmp_path / "run", resume=True, kl_budget=1e-9)[0] == [2]
    assert max(line["step"] for line in lines(tmp_path / "run") if "loss" in line) == 2
    assert ended(model, tmp_path / "whole", kl_budget=1e9) == ([2, 4, 6], [])


def test_a_diversity_budget_ends_the_run_at_the_share_that_was_measured(model: Path, tmp_path: Path) -> None:
    ended(model, tmp_path / "whole", kl_budget=1e9)
    folder = RunDirectory(tmp_path / "whole").checkpoint(2) / "evaluation"
    ((name, share),) = shares(saved_results(folder))
    assert name.endswith("diversity/pixels")
    if share <= 0.99:
        assert ended(model, tmp_path / "below", diversity_budget=min(1.0, share * 1.001))[0] == [2]
    found, said = ended(model, tmp_path / "above", diversity_budget=min(1.0, share * 0.999))
    assert found != [2]
    assert len(said) == (found != [2, 4, 6])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["training.kl_budget=1.0", "schedule.eta=0.0", "method.name=draft"], r"training\.kl_budget.*without noise"),
        (["training.diversity_budget=0.8", "evaluation.diversity=[]"], r"diversity_budget.*names none"),
        (["training.diversity_budget=0.8", "evaluation.every=0"], r"diversity_budget.*every is 0"),
    ],
)
def test_a_budget_that_nothing_measures_is_refused(settings: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_recipe("shapes", settings)
