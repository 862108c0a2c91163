"""amsd as a library: `import amsd` in a notebook."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import amsd
from tests.documentation.pages import blocks

ROOT = Path(__file__).parents[1]


def test_every_name_is_there_and_an_unknown_one_is_an_error() -> None:
    assert {"train", "load_recipe", "AMTrainer", "SOCDDIMScheduler", "sample", "export"} <= set(dir(amsd))
    for name in dir(amsd):
        assert getattr(amsd, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = amsd.trian


def test_importing_amsd_imports_nothing_heavy() -> None:
    code = "import sys, amsd; dir(amsd); print([n for n in ('torch', 'diffusers', 'pydantic') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_a_trainer_that_was_built_by_hand_trains_and_writes_its_recipe(tmp_path: Path) -> None:
    from amsd.experiment.setup import build_accelerator, build_problem, load_policy

    recipe = amsd.load_recipe(
        "shapes",
        ["training.steps=1", "optimizer.prompts_per_step=2", "evaluation.every=0"],
    )
    accelerator = build_accelerator(recipe)
    prompts = ["a small red circle", "two blue squares"]
    problem = build_problem(recipe, accelerator, load_policy(recipe, accelerator.device), prompts)
    run = amsd.RunDirectory(tmp_path / "run")
    amsd.AMTrainer(problem, run, prompts, accelerator).fit()
    assert amsd.load_recipe(str(run.recipe)) == amsd.load_recipe(str(run.checkpoint(1) / "recipe.toml"))
    assert amsd.load_recipe(str(run.recipe)).training.steps == 1


@pytest.mark.slow
def test_the_python_block_of_the_readme_trains_and_prints_the_gain(tmp_path: Path) -> None:
    (block,) = [found.text for found in blocks("python") if found.page == "README.md"]
    assert len(block.splitlines()) <= 25
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", block], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=600
    )
    assert done.returncode == 0, done.stderr
    gain, error = map(float, re.search(r"gain ([+-]\S+) ± (\S+),", done.stdout).groups())  # type: ignore[union-attr]
    assert gain > 5 * error
