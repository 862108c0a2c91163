"""Workers as processes of one command: none outlives it, and it says why they died."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from amsd.errors import RunError
from amsd.sweep.launchers.local import run_workers
from amsd.sweep.results import load_sweep
from amsd.sweep.study import create
from tests.sweep.conftest import MakePlan
from tests.waiting import gone, until

pytestmark = pytest.mark.slow

PATIENT = {"heartbeat_seconds": 0.5, "lost_after_seconds": 600.0}


def training(directory: Path) -> int | None:
    """Process of the only trial's training, once it has begun to train."""
    if not list(directory.glob("trials/*/seed-0/run/steps.txt")):
        return None
    (starts,) = directory.glob("trials/*/seed-0/run/starts.txt")
    return int(starts.read_text().split()[0])


def check_handed_back(directory: Path) -> None:
    """The worker itself put its trial back: nobody waits long enough here to take it for lost."""
    pid = training(directory)
    assert pid is not None
    until(lambda: gone(pid), 120)
    until(lambda: [trial.state for trial in load_sweep(directory).trials] == ["queued"], 120)


def test_a_view_that_fails_does_not_end_the_sweep(
    make_plan: MakePlan, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    handle = create(make_plan(budget={"trials": 1}, execution=PATIENT), tmp_path)

    def tick() -> None:
        raise OSError("no room on the screen")

    with caplog.at_level(logging.WARNING):
        run_workers(handle, 1, tick)
    assert [trial.state for trial in load_sweep(tmp_path).trials] == ["complete"]
    assert "no room on the screen" in caplog.text


def test_an_interrupt_ends_the_workers(make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = tmp_path / "held"
    held.touch()
    monkeypatch.setenv("FAKE_HELD_WHILE", str(held))
    handle = create(make_plan(budget={"trials": 1}, execution=PATIENT), tmp_path)

    def tick() -> None:
        if training(tmp_path) is not None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_workers(handle, 1, tick, every=0.1)
    pid = training(tmp_path)
    assert pid is not None
    assert gone(pid)
    assert [trial.state for trial in load_sweep(tmp_path).trials] == ["queued"]


def test_the_error_of_a_dead_worker_is_said(make_plan: MakePlan, tmp_path: Path) -> None:
    handle = create(make_plan(), tmp_path)
    elsewhere = replace(handle, url=f"sqlite:///{tmp_path}/empty.db")
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers/0.txt").write_text("Error: of an earlier day\n")
    with pytest.raises(RunError, match=r"1 of 1 workers died(.|\n)*empty\.db: no sweep 'small' there") as failure:
        run_workers(elsewhere, 1)
    assert "earlier day" not in str(failure.value)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP], ids=lambda number: number.name)
def test_the_workers_of_a_command_that_is_ended_hand_back(
    make_plan: MakePlan, tmp_path: Path, number: signal.Signals
) -> None:
    held = tmp_path / "held"
    held.touch()
    create(make_plan(budget={"trials": 1}, execution=PATIENT), tmp_path)
    program = (
        "import signal, sys; from amsd.sweep.launchers.local import run_workers; from amsd.sweep.study import locate; "
        "signal.signal(signal.SIGHUP, signal.SIG_DFL); "  # the tests may run under nohup
        "run_workers(locate(sys.argv[1]), 1)"
    )
    environment = {**os.environ, "FAKE_HELD_WHILE": str(held)}
    command = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], env=environment)
    try:
        until(lambda: training(tmp_path) is not None, 120)
        command.send_signal(number)
        check_handed_back(tmp_path)
    finally:
        held.unlink()
        command.kill()
        command.wait()
