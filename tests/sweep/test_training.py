"""Sweeps over the real `amsd train` on the embedded model: a killed worker resumes, two ranks per trial, pruning."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from amsd.sweep.executor import RunLog, Verdict
from amsd.sweep.launch import STORAGE_VARIABLE
from amsd.sweep.load import Plan
from amsd.sweep.points import make_point
from amsd.sweep.process import MARK, ProcessExecutor
from amsd.sweep.results import load_sweep
from amsd.sweep.storage import default_url
from amsd.sweep.study import create
from tests.sweep.conftest import MakePlan

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

QUICK = {
    "training.steps": 4,
    "training.checkpoint_every": 1,
    "optimizer.prompts_per_step": 4,
    "optimizer.micro_batch": 2,
    "optimizer.warmup_steps": 1,
    "evaluation.prompts": 2,
    "evaluation.samples_per_prompt": 2,
    "tracking.mode": "disabled",
}


def real_plan(make_plan: MakePlan, **changes: object) -> Plan:
    execution = {"poll_seconds": 0.2, "heartbeat_seconds": 1.0, "lost_after_seconds": 10.0, "terminate_seconds": 30.0}
    return make_plan(override=QUICK, execution={"command": None, **execution}, **changes)


def logged_steps(run: Path) -> list[int]:
    if not (run / "metrics.jsonl").is_file():
        return []
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record["step"] for record in records if "loss" in record]


def test_a_killed_worker_s_training_resumes_from_its_checkpoint(make_plan: MakePlan, tmp_path: Path) -> None:
    create(real_plan(make_plan, budget={"trials": 2}), tmp_path)
    command = [sys.executable, "-m", "amsd", "sweep", "worker", "--study", "small"]
    environment = {**os.environ, STORAGE_VARIABLE: default_url(tmp_path)}
    workers = [subprocess.Popen(command, env=environment, start_new_session=True) for _ in range(2)]
    deadline = time.monotonic() + 600
    while not (found := list(tmp_path.glob("trials/*/seed-0/run/checkpoints/step-000002"))):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    run = found[0].parents[1]
    (killed,) = [trial for trial in load_sweep(tmp_path).trials if trial.runs and trial.runs[0].directory == run]
    assert killed.worker is not None
    os.kill(int(killed.worker.rpartition(":")[2]), signal.SIGKILL)
    assert sorted(worker.wait(900) for worker in workers) == [-signal.SIGKILL, 0]
    results = load_sweep(tmp_path)
    assert [trial.state for trial in results.trials] == ["complete"] * 2
    assert [trial.attempts for trial in results.trials] == [
        2 if t.number == killed.number else 1 for t in results.trials
    ]
    for trial in results.trials:
        # Each step is in the log once: a resumed run goes on after its checkpoint.
        assert logged_steps(trial.runs[0].directory) == [1, 2, 3, 4]


def test_two_ranks_train_one_recipe_and_a_pruned_trial_leaves_nobody_behind(
    make_plan: MakePlan, tmp_path: Path
) -> None:
    plan = real_plan(make_plan)
    execution = plan.sweep.execution.model_copy(update={"processes": 2})
    (job,) = make_point(plan, tmp_path, 0, {"schedule.eta": 0.9}).jobs
    ranks: dict[str, list[str]] = {}

    def marked() -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == str(job.directory.resolve()):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def monitor(log: RunLog) -> Verdict:
        for process in marked():
            try:
                if "RANK" in process.environ():
                    ranks[process.environ()["RANK"]] = process.cmdline()
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return Verdict.PRUNE if log.evaluation_steps() else Verdict.CONTINUE

    ended = ProcessExecutor(execution).run(job, monitor)
    assert ended.status == "pruned", ended.error
    assert set(ranks) == {"0", "1"}
    assert all(str(job.directory / "recipe.toml") in command for command in ranks.values())
    assert marked() == []
    # Handed out again, the same job goes on where it was and ends.
    ended = ProcessExecutor(execution).run(job, lambda _: Verdict.CONTINUE)
    assert ended.status == "complete", ended.error
    assert logged_steps(job.run) == [1, 2, 3, 4]
