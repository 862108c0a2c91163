"""Every method from the command line on both embedded models, and what all of them share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from amsd.cli.app import app
from amsd.recipe import load_recipe
from amsd.recipe.catalog import names
from amsd.recipe.cost import cost_per_trajectory
from amsd.recipe.methods import METHODS
from amsd.recipe.rules import warnings
from amsd.run_directory import RunDirectory
from tests.cli.commands import lines

SETTINGS = (
    "schedule.num_inference_steps=4", "optimizer.prompts_per_step=4", "optimizer.micro_batch=2", "training.steps=3",
    "training.checkpoint_every=1", "training.validate_every=3",
    "evaluation.every=0", "tracking.trackers=none", "method.timesteps_per_trajectory=2",
)  # fmt: skip
WITH_BASE = {"am", "buffer-am", "eam", "ram"}
"""Methods whose loss needs the base's predictions."""


def trained(recipe: str, method: str, run: Path, *options: str) -> None:
    settings = [part for each in (*SETTINGS, f"method.name={method}") for part in ("--set", each)]
    outcome = CliRunner().invoke(app, ["train", recipe, *settings, "--output", str(run), *options])
    assert outcome.exit_code == 0, outcome.output


@pytest.mark.parametrize(
    ("recipe", "method"),
    [("shapes", method) for method in METHODS]
    + [pytest.param("flow", method, marks=pytest.mark.slow) for method in METHODS],
)
def test_a_run_that_was_killed_goes_on_bit_by_bit(recipe: str, method: str, tmp_path: Path) -> None:
    """Killed while it wrote the second checkpoint: its parts lie aside, and lines that came later are logged."""
    whole, killed = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "killed")
    trained(recipe, method, whole.path)
    shutil.copytree(whole.path, killed.path)
    killed.checkpoint(2).rename(killed.checkpoints / ".step-000002.123.tmp")
    shutil.rmtree(killed.checkpoint(3), ignore_errors=True)
    trained(recipe, method, killed.path, "--resume")
    assert lines(killed.path) == lines(whole.path)
    steps = [line for line in lines(whole.path) if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3]
    assert all(line["gradient_norm"] > 0 for line in steps)
    # What the alarm listens to, and the distance from the base that means the same for all methods.
    assert all(0 <= line["clamped_share"] <= 1 for line in steps)
    assert all(("prediction_ratio" in line) == (method in WITH_BASE) for line in steps)
    assert steps[-1]["validation/prediction_ratio"] == pytest.approx(1, abs=0.2)
    assert 0 < steps[-1]["validation/kl"] < 100
    files = sorted(file for file in whole.checkpoint(3).rglob("*.safetensors"))
    assert files
    for file in files:
        ours = load_file(killed.checkpoint(3) / file.relative_to(whole.checkpoint(3)))
        theirs = load_file(file)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), file.name


@pytest.mark.parametrize("recipe", names("recipes"))
@pytest.mark.parametrize("method", METHODS)
def test_changing_the_method_of_a_shipped_recipe_starts(recipe: str, method: str) -> None:
    found = load_recipe(recipe, [f"method.name={method}"])
    assert found.method.name == method
    assert cost_per_trajectory(found).total > 0
    assert all(problem.key.startswith("method.") for problem in warnings(found))  # keys of the other method


def test_no_two_methods_share_a_folder_or_a_label() -> None:
    found = [load_recipe("shapes", [f"method.name={method}"]).method for method in METHODS]
    assert len({each.label for each in found}) == len(found)
