"""Evaluating, watching, drawing and exporting from the command line, and runs that fail."""

from __future__ import annotations

import json
import resource
import subprocess
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from amsd.cli.app import app
from amsd.report.data import load_run
from tests.cli.commands import AMSD, amsd, finish, lines, start, steps, wait_until

pytestmark = pytest.mark.slow


def call(*arguments: str | Path) -> str:
    outcome = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert outcome.exit_code == 0, outcome.output
    return outcome.stdout


def test_eval_prints_a_table_or_json_and_agrees_with_the_evaluation_while_training(
    recipe: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    call("train", recipe, "--output", run, "--set", "training.steps=2")
    checkpoint = run / "checkpoints" / "step-000002"
    [file] = (checkpoint / "evaluation").glob("*.json")
    trained = json.loads(file.read_text(encoding="utf-8"))["metrics"]
    [found] = json.loads(call("eval", checkpoint, "--json")).values()
    assert found["metrics"]["brightness"]["mean"] == pytest.approx(trained["brightness"]["mean"])
    assert found["metrics"]["brightness"]["paired"]["difference"] != 0
    assert "brightness" in call("eval", run)
    [base] = json.loads(call("eval", "base", "--recipe", recipe, "--json")).values()
    assert base["metrics"]["brightness"]["paired"] is None
    difference = found["metrics"]["brightness"]["mean"] - base["metrics"]["brightness"]["mean"]
    assert found["metrics"]["brightness"]["paired"]["difference"] == pytest.approx(difference)

    pictures = call("sample", run, "-p", "a cat", "--count", "2", "--out", tmp_path / "pictures").split()
    assert [Path(picture).name for picture in pictures] == ["p000-s0.png", "p000-s1.png"]
    assert all(Path(picture).is_file() for picture in pictures)
    assert (Path(call("export", run, "--to", tmp_path / "export").strip()) / "model_index.json").is_file()
    again = CliRunner().invoke(app, ["export", str(run), "--to", str(tmp_path / "export")])
    assert again.exception is not None
    assert "not an empty folder" in str(again.exception)


def test_other_conditions_overwrite_nothing_and_a_resume_under_them_starts_a_series(
    recipe: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    call("train", recipe, "--output", run, "--set", "training.steps=2")
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file() and file.suffix in (".json", ".png")}
    call("eval", run, "--set", "evaluation.seed=3")
    call("eval", run, "--set", 'prompts.evaluation=["a dog"]')
    call("eval", run, "--set", "evaluation.samples_per_prompt=3")
    assert all(file.read_bytes() == content for file, content in before.items())
    assert len(load_run(run).settings) == 4
    assert load_run(run).series[load_run(run).settings[0]].logged
    for name in load_run(run).settings:
        assert name in load_run(run).base.evaluations
        assert name in load_run(run).checkpoints[0].evaluations

    call("train", recipe, "--output", run, "--resume", "--set", "training.steps=4", "--set", "evaluation.seed=3")
    (notice,) = [line for line in lines(run) if line.get("notice") == "evaluation-changed"]
    assert "a series of their own" in notice["text"]
    scores = json.loads((run / "checkpoints" / "scores.json").read_text(encoding="utf-8"))
    assert set(scores) == {"2", "4"}  # both under the new seed
    found = load_run(run)
    (seed_3,) = [name for name in found.settings if "seed 3" in name]
    assert [point.step for point in found.checkpoints if seed_3 in point.evaluations] == [2, 4]
    own = next(name for name in found.settings if "seed 0" in name and "2 samples" in name)
    assert [point.step for point in found.checkpoints if own in point.evaluations] == [2]


@pytest.mark.parametrize("ending", ["finished", "failed"])
def test_watch_evaluates_a_running_training_and_ends_with_it(recipe: Path, tmp_path: Path, ending: str) -> None:
    run = tmp_path / "run"
    settings: tuple[str, ...] = ("--set", "evaluation.every=0", "--set", "training.steps=6")
    if ending == "failed":
        settings += ("--set", 'reward=[{name = "python:tests.cli.rewards:fails_at_step_5"}]')
    training = start("train", recipe, "--output", run, *settings)
    wait_until(lambda: bool(steps(run)), training)
    watching = start("eval", "base", "--watch", run, "--json")
    assert finish(training).returncode == (0 if ending == "finished" else 1)
    watched = finish(watching)
    assert watched.returncode == 0, watched.stderr
    expected = [2, 4, 6] if ending == "finished" else [2, 4]
    assert len(watched.stdout.splitlines()) == len(expected)
    for step in expected:
        assert list((run / "checkpoints" / f"step-{step:06d}" / "evaluation").glob("*.json"))


def test_a_run_that_fails_ends_with_1_and_one_message(recipe: Path, tmp_path: Path) -> None:
    reward = ("--set", 'reward=[{name = "python:tests.cli.rewards:fails"}]', "--set", "evaluation.every=0")
    ended = amsd("train", recipe, "--output", tmp_path / "run", *reward)
    assert ended.returncode == 1
    assert ended.stderr.count("this reward is broken") == 1
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "run").exists()  # it failed before anything was trained: nothing blocks the next start
    told = amsd("--debug", "train", recipe, "--output", tmp_path / "again", *reward)
    assert told.returncode == 1
    assert "Traceback" in told.stderr


def test_a_disk_that_takes_no_more_is_said_in_one_message(recipe: Path, tmp_path: Path) -> None:
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    arguments: list[Any] = [*AMSD, "train", recipe, "--output", tmp_path / "run", "--set", "evaluation.every=0"]
    ended = subprocess.run(arguments, preexec_fn=small_files, capture_output=True, text=True, check=False)
    assert ended.returncode == 1, ended.stderr
    assert "too large" in ended.stderr
    assert "Traceback" not in ended.stderr
    whole = amsd("train", recipe, "--output", tmp_path / "run", "--set", "evaluation.every=0", "--resume")
    assert whole.returncode == 0, whole.stderr
