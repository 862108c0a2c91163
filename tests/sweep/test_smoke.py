"""The shipped `shapes-smoke` sweep as a user runs it: real trainings, two workers on SQLite, one killed outright."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from amsd.sweep.results import SweepResults, TrialResult, load_sweep
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

#: A dead worker is noticed after seconds instead of a minute and a half; all else is as it ships.
QUICKER = ["execution.heartbeat_seconds=1.0", "execution.lost_after_seconds=20.0", "execution.poll_seconds=0.5"]
STEPS, CHECKPOINT = 8, 4


def start(folder: Path) -> subprocess.Popen[str]:
    settings = [part for setting in QUICKER for part in ("--set", setting)]
    command = [sys.executable, "-m", "amsd", "sweep", "run", "shapes-smoke", "--workers", "2", *settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled", "COLUMNS": "80"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def running(sweep: Path) -> list[TrialResult]:
    if not (sweep / "sweep.json").is_file():
        return []
    return [trial for trial in load_sweep(sweep).trials if trial.state == "running" and trial.runs and trial.worker]


def log_of(trial: TrialResult) -> list[dict[str, Any]]:
    lines = (trial.runs[0].directory / "metrics.jsonl").read_text().splitlines()
    return [record for line in lines if "loss" in (record := json.loads(line))]


def test_one_of_two_workers_is_killed_in_the_middle_of_a_trial(tmp_path: Path) -> None:
    sweep = tmp_path / "runs" / "sweep-shapes-smoke"
    command = start(tmp_path)
    try:
        until(lambda: len(running(sweep)) == 2, 600)
        victim = running(sweep)[0]
        assert victim.worker is not None
        checkpoint = victim.runs[0].directory / "checkpoints" / f"step-{CHECKPOINT:06d}" / "manifest.json"
        until(checkpoint.is_file, 900)
        os.kill(int(victim.worker.rpartition(":")[2]), signal.SIGKILL)
        killed_at = time.time()
        output, _ = command.communicate(timeout=1800)
    finally:
        command.terminate()
        command.wait(60)
    assert command.returncode == 0, output
    results = load_sweep(sweep)
    check_nothing_lost_nothing_twice(results, victim.number)
    check_resumed(results.trials[victim.number], killed_at)
    assert "6 of 6 trials (6 complete)" in output
    assert "1 of 2 workers died" in output
    assert "amsd report runs/sweep-shapes-smoke" in output


def check_nothing_lost_nothing_twice(results: SweepResults, killed: int) -> None:
    assert [trial.state for trial in results.trials] == ["complete"] * 6
    attempts = {trial.number: trial.attempts for trial in results.trials}
    assert attempts == {number: 2 if number == killed else 1 for number in attempts}
    assert len(list(results.directory.glob("trials/*/seed-0"))) == 6
    for trial in results.trials:
        assert [record["step"] for record in log_of(trial)] == list(range(1, STEPS + 1))


def check_resumed(trial: TrialResult, killed_at: float) -> None:
    """The log has the steps up to the checkpoint from before the kill, and those after it from after the kill."""
    before = [record["step"] for record in log_of(trial) if record["time"] < killed_at]
    assert before == list(range(1, CHECKPOINT + 1))
