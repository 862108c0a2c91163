"""The report of a sweep that really went through storage and workers; only the training is synthetic."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from amsd.cli.report import report
from amsd.errors import UsageError
from amsd.recipe import dump_toml, identity
from amsd.recipe.load import read_toml
from amsd.report.sweep_story import sweep_story
from amsd.sweep.jobs import Ended, Job, Monitor, RunLog
from amsd.sweep.load import plan_from
from amsd.sweep.study import create
from amsd.sweep.worker import Worker
from tests.report.synthetic import DIVERSITY, REWARD, recipe, write_run


@dataclass
class Writes:
    """Leaves a run directory instead of training."""

    def run(self, job: Job, monitor: Monitor) -> Ended:
        strength = 0.3 * job.recipe.schedule.eta
        write_run(job.run, job.recipe, strength, pictures=False, seed=job.seed)
        setting = job.recipe.evaluation_settings[0].name
        log = RunLog({60: {setting: {f"eval/{REWARD}": strength, f"eval/{DIVERSITY}": 0.3 - strength / 4}}}, {}, None)
        monitor(log)
        return Ended("complete", log)


@pytest.fixture(scope="module")
def sweep_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "base.toml").write_text(dump_toml(recipe()), encoding="utf-8")
    tree = {
        "name": "guidance",
        "recipe": "base.toml",
        "override": {"evaluation.guidance_scale": [5.0], "evaluation.eta": [0.0]},
        "search": {
            "guidance.guidance_scale": {"choices": [1.0, 5.0]},
            "guidance.guidance_in_adjoint_computation": {
                "choices": [False, True],
                "when": {"guidance.guidance_scale": {"above": 1.0}},
            },
            "schedule.eta": {"choices": [0.7, 1.0]},
        },
        "seeds": [0, 1],
        "objective": [{"metric": REWARD}, {"metric": DIVERSITY}],
        "sampler": {"name": "random", "seed": 1},
        "budget": {"trials": 8},
    }
    plan = plan_from(tree, read_toml(folder / "base.toml"))
    Worker(create(plan, folder / "study"), Writes()).run()
    return folder / "study"


def test_story_of_a_real_study(sweep_folder: Path) -> None:
    story = sweep_story(sweep_folder)
    assert story.title == "guidance"
    assert story.reward == REWARD
    assert story.diversity == DIVERSITY
    assert story.axes[0].key == "guidance.guidance_scale"
    assert "only where guidance.guidance_scale" in story.axes[1].description
    assert {entry.trial for entry in story.entries} == set(range(8))
    copies = [entry for entry in story.entries if entry.copy_of is not None]
    assert all(entry.run is None for entry in copies)
    drawn = {(identity(entry.run.recipe), entry.seed) for entry in story.entries if entry.run and entry.run.recipe}
    assert len(drawn) == len(story.runs)  # equal runs are drawn once
    assert {mode.name for mode in story.modes} <= {"CFG trajectories", "no guidance", "mixed"}
    assert len(story.settings) == 1


def test_command_takes_a_sweep(sweep_folder: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(report)
    page = tmp_path / "sweep.html"
    result = CliRunner().invoke(app, [str(sweep_folder), "--html", str(page)])
    assert result.exit_code == 0, result.output
    text = page.read_text(encoding="utf-8")
    assert "What was searched" in text
    assert 'id="parameters"' in text


@pytest.mark.parametrize("made", [True, False])
def test_neither_run_nor_sweep(tmp_path: Path, made: bool) -> None:
    app = typer.Typer()
    app.command()(report)
    result = CliRunner().invoke(app, [str(tmp_path if made else tmp_path / "nowhere")])
    assert isinstance(result.exception, UsageError)
