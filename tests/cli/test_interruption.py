"""Trainings that end before their time: Ctrl-C, and SIGKILL at any moment."""

from __future__ import annotations

import os
import random
import shlex
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from amsd.cli.app import app
from amsd.run_directory import RunDirectory, damage
from tests.cli.commands import amsd, finish, lines, start, steps, wait_until

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_ends_with_130_and_names_the_command_that_goes_on(recipe: Path, tmp_path: Path, processes: int) -> None:
    run = tmp_path / "a run"
    several = ("--processes", "2") if processes == 2 else ()
    process = start("train", recipe, "--output", run, "--set", "training.steps=400", *several)
    wait_until(lambda: len(steps(run)) >= 3, process)
    process.send_signal(signal.SIGINT)
    ended = finish(process)
    assert ended.returncode == 130, ended.stderr
    assert "Traceback" not in ended.stderr
    [said] = [line for line in ended.stderr.splitlines() if "Continue with: " in line]
    again = shlex.split(said.partition("Continue with: ")[2])
    expected = ["train", str(recipe), "--output", str(run), "--set", "training.steps=400", *several, "--resume"]
    assert again == ["amsd", *expected]
    assert lines(run)[-1]["notice"] == "interrupted"

    saved = RunDirectory(run).steps()[-1]
    assert f"its newest checkpoint is step-{saved:06d}" in said
    went_on = amsd(*again[1:], "--set", f"training.steps={saved + 2}")
    assert went_on.returncode == 0, went_on.stderr
    assert steps(run) == list(range(1, saved + 3))


def _writing(run: Path) -> bool:
    folder = run / "checkpoints"
    return folder.is_dir() and any(name.startswith(".") for name in os.listdir(folder))  # noqa: PTH208  # fast


def _step(number: int) -> Callable[[Path], bool]:
    return lambda run: number in steps(run)


#: When to kill, and for how long to wait after that (seconds, at most).
MOMENTS: tuple[tuple[Callable[[Path], bool], float], ...] = (
    (lambda run: run.is_dir(), 3.0),  # while it starts
    (_writing, 0.0),
    (_writing, 0.05),
    (_step(5), 0.2),
    (_step(9), 0.0),
)


def test_a_run_killed_at_any_moment_and_resumed_is_that_of_an_uninterrupted_one(recipe: Path, tmp_path: Path) -> None:
    length = ("--set", "training.steps=12")
    outcome = CliRunner().invoke(app, ["train", str(recipe), "--output", str(tmp_path / "whole"), *length])
    assert outcome.exit_code == 0, outcome.output
    run, delays = tmp_path / "killed", random.Random(0)
    for moment, longest in MOMENTS:
        resume = ("--resume",) if run.is_dir() else ()
        process = start("train", recipe, "--output", run, *length, *resume)
        wait_until(lambda moment=moment: moment(run), process, interval=0.001)  # type: ignore[misc]
        time.sleep(delays.uniform(0.0, longest))
        process.kill()
        process.communicate()
        for step in RunDirectory(run).steps():
            assert damage(RunDirectory(run).checkpoint(step)) is None
    ended = amsd("train", recipe, "--output", run, *length, "--resume")
    assert ended.returncode == 0, ended.stderr
    assert lines(run) == lines(tmp_path / "whole")
    assert not list((run / "checkpoints").glob(".*"))
    for step in RunDirectory(run).steps():
        one, other = RunDirectory(run).checkpoint(step), RunDirectory(tmp_path / "whole").checkpoint(step)
        for file in one.rglob("*.safetensors"):
            assert file.read_bytes() == (other / file.relative_to(one)).read_bytes()
