"""Trainings that end before their time: Ctrl-C, and SIGKILL at any moment."""

from __future__ import annotations

import os
import random
import shlex
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from amsd.cli.app import app
from amsd.run_directory import RunDirectory, damage
from tests.cli.commands import LAUNCHERS, amsd, finish, lines, start, steps, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of eight steps that was never interrupted."""
    run = tmp_path_factory.mktemp("whole") / "run"
    outcome = CliRunner().invoke(app, ["train", str(recipe), "--output", str(run)])
    assert outcome.exit_code == 0, outcome.output
    return run


def _evaluating(run: Path) -> bool:
    return (run / "checkpoints" / "step-000004" / "manifest.json").is_file()


@pytest.mark.parametrize(
    ("number", "times", "moment", "processes"),
    [
        (signal.SIGTERM, 1, "step", 1),
        (signal.SIGUSR1, 2, "step", 1),
        (signal.SIGHUP, 1, "evaluation", 1),
        (signal.SIGINT, 2, "step", 1),
        (signal.SIGUSR2, 1, "step", 2),
        (signal.SIGINT, 2, "step", 2),
        (signal.SIGTERM, 1, "evaluation", 2),
    ],
)
def test_an_announced_end_keeps_the_work_and_names_the_command_that_goes_on(
    recipe: Path, whole: Path, tmp_path: Path, number: signal.Signals, times: int, moment: str, processes: int
) -> None:
    run = tmp_path / "a run"
    several = ("--processes", "2") if processes == 2 else ()
    process = start("train", recipe, "--output", run, *several)
    wait_until(lambda: _evaluating(run) if moment == "evaluation" else 3 in steps(run), process, interval=0.002)
    process.send_signal(number)
    for _ in range(times - 1):
        time.sleep(0.05)
        process.send_signal(number)
    ended = finish(process)
    assert ended.returncode == (130 if number == signal.SIGINT else 75), ended.stderr
    assert "Traceback" not in ended.stderr
    [said] = [line for line in ended.stderr.splitlines() if "Continue with: " in line]
    again = shlex.split(said.partition("Continue with: ")[2])
    assert again == ["amsd", "train", str(recipe), "--output", str(run), *several, "--resume"]
    assert lines(run)[-1]["notice"] == "interrupted"
    saved = RunDirectory(run).steps()[-1]
    assert saved == steps(run)[-1] >= 3  # no step is lost
    assert f"Its newest checkpoint is step-{saved:06d}" in said
    assert damage(RunDirectory(run).checkpoint(saved)) is None

    went_on = amsd(*again[1:])
    assert went_on.returncode == 0, went_on.stderr
    assert steps(run) == list(range(1, 9))
    assert RunDirectory(run).steps() == RunDirectory(whole).steps()
    if processes == 1:
        assert lines(run) == lines(whole)


def test_of_two_resumes_at_once_one_is_refused(recipe: Path, tmp_path: Path) -> None:
    run, long = tmp_path / "run", ("--set", "training.steps=2000", "--set", "training.checkpoint_every=1000")
    process = start("train", recipe, "--output", run, *long)
    wait_until(lambda: 2 in steps(run), process)
    second = amsd("train", recipe, "--output", run, *long, "--resume")
    assert second.returncode == 2, second.stderr
    assert f"in use by process {process.pid} on " in second.stderr
    process.send_signal(signal.SIGTERM)
    assert finish(process).returncode == 75
    assert steps(run) == list(range(1, RunDirectory(run).steps()[-1] + 1))  # nothing was written twice


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (signal.SIGKILL, "Process 1 of 2 died: SIGKILL"),
        (signal.SIGSTOP, "Process 1 of 2 was stopped (SIGSTOP, or a debugger) for 30 s"),
    ],
)
def test_a_dead_or_frozen_rank_is_named_and_the_other_ends(
    recipe: Path, tmp_path: Path, number: signal.Signals, message: str
) -> None:
    run = tmp_path / "run"
    process = start("train", recipe, "--output", run, "--processes", "2", "--set", "training.steps=400")
    wait_until(lambda: len(steps(run)) >= 2, process)
    ranks = [child for child in psutil.Process(process.pid).children(recursive=True) if "RANK" in child.environ()]
    victim = next(child for child in ranks if child.environ()["RANK"] == "1")
    begin = time.monotonic()
    victim.send_signal(number)
    ended = finish(process)
    assert ended.returncode == 1
    assert time.monotonic() - begin < 90
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not [child for child in ranks if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_a_frozen_rank_is_named_by_the_other_under_the_users_own_launcher(
    recipe: Path, tmp_path: Path, launcher: str
) -> None:
    run = tmp_path / "run"
    process = start(
        "train", recipe, "--output", run, "--set", "training.steps=400", "--set", "evaluation.every=0",
        launcher=LAUNCHERS[launcher], AMSD_PATIENCE="10", ACCELERATE_USE_CPU="true",
    )  # fmt: skip
    wait_until(lambda: RunDirectory(run).pointer("latest") is not None, process)
    children = psutil.Process(process.pid).children(recursive=True)
    ranks = {child.environ()["RANK"]: child for child in children if "RANK" in child.environ()}
    ranks["1"].suspend()
    begin = time.monotonic()
    ranks["0"].wait(60)
    assert 8 < time.monotonic() - begin < 45
    ranks["1"].kill()  # the launcher itself waits 30 s more before it does that
    ended = finish(process)
    assert ended.returncode == 1
    who = f"Process 1 of 2 ({ranks['1'].pid} on {socket.gethostname()}) has been silent for 10 s"
    assert f"[process 0] Error: {who}" in ended.stderr
    assert "Continue with --resume" in ended.stderr
    assert damage(RunDirectory(run).checkpoint(RunDirectory(run).steps()[-1])) is None


def test_a_signal_to_one_of_two_processes_while_they_evaluate_ends_both(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    many = ("--set", "evaluation.samples_per_prompt=48", "--set", "evaluation.batch_size=2")
    process = start("train", recipe, "--output", run, "--processes", "2", *many)
    wait_until(lambda: _evaluating(run), process, interval=0.002)
    ranks = [child for child in psutil.Process(process.pid).children(recursive=True) if "RANK" in child.environ()]
    next(child for child in ranks if child.environ()["RANK"] == "1").send_signal(signal.SIGUSR1)
    ended = finish(process)
    assert ended.returncode == 75, ended.stderr
    assert "Continue with: amsd train" in ended.stderr
    assert "Error" not in ended.stderr
    assert RunDirectory(run).steps()[-1] == 4


def _writing(run: Path) -> bool:
    folder = run / "checkpoints"
    return folder.is_dir() and any(name.startswith(".") for name in os.listdir(folder))  # noqa: PTH208  # fast


def _step(number: int) -> Callable[[Path], bool]:
    return lambda run: number in steps(run)


#: When to kill, and for how long to wait after that (seconds, at most).
MOMENTS: tuple[tuple[Callable[[Path], bool], float], ...] = (
    (lambda run: True, 3.0),  # while it starts, before anything of it exists
    (lambda run: run.is_dir(), 0.0),  # with the first file
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
