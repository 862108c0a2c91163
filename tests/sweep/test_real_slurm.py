"""A sweep on a real Slurm of this machine: jobs that are told to end, and trials over two nodes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from amsd.sweep import optuna_access as names
from amsd.sweep.results import load_sweep
from amsd.sweep.study import locate
from tests.sweep.conftest import FAKE_TRAINER
from tests.sweep.slurm_cluster import slurm_cluster, usable
from tests.waiting import until

pytest.importorskip("submitit")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not usable(), reason="no Slurm on this machine (Debian: slurmctld slurmd slurm-client), or not root"
    ),
]


def sweep_file(folder: Path, trials: int, steps: int, rest: str) -> Path:
    file = folder / "small.toml"
    file.write_text(
        'recipe = "shapes"\nsearch = { "schedule.eta" = { low = 0.5, high = 1.5 } }\n'
        f'objective = [{{ metric = "shapes:right" }}]\nbudget.trials = {trials}\n'
        'sampler = { name = "random", seed = 0 }\n'
        f'[override]\n"training.steps" = {steps}\n"training.checkpoint_every" = 2\n{rest}',
        encoding="utf-8",
    )
    return file


def start_sweep(file: Path, folder: Path, environment: dict[str, str], workers: int) -> None:
    command = [sys.executable, "-m", "amsd", "sweep", "run", str(file), "--output", str(folder / "out")]
    done = subprocess.run(
        [*command, "--launcher", "slurm", "--workers", str(workers), "--storage", f"journal:{folder / 'journal.log'}"],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def jobs(environment: dict[str, str], state: str) -> list[str]:
    """Ids of the jobs in a state."""
    found = subprocess.run(
        ["squeue", "--noheader", f"--states={state}", "--array", "--format=%i"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return found.stdout.split()


def test_jobs_that_slurm_ends_are_queued_again_and_lose_nothing(tmp_path: Path) -> None:
    steps, trials, held = 8, 5, tmp_path / "held"
    held.touch()
    rest = (
        f'[execution]\ncommand = ["{sys.executable}", "{FAKE_TRAINER}"]\npoll_seconds = 0.2\nterminate_seconds = 20.0\n'
        "[slurm]\nminutes = 10\ngpus = 0\ncpus = 1\nsignal_seconds = 60\n"
    )
    file = sweep_file(tmp_path, trials, steps, rest)
    with slurm_cluster(tmp_path / "slurm", nodes=2) as environment:
        start_sweep(file, tmp_path, {**environment, "FAKE_HELD_WHILE": str(held)}, workers=2)
        until(lambda: len(half_way(tmp_path, steps)) == 2, 200)
        running = jobs(environment, "RUNNING")
        assert len(running) == 2
        # What Slurm does before a time limit (--signal), and at a preemption (SIGTERM, and the job queued again).
        subprocess.run(["scancel", "--signal=USR2", running[0]], env=environment, check=True)
        subprocess.run(["scontrol", "requeue", running[1]], env=environment, check=True)
        until(lambda: sorted(jobs(environment, "PENDING")) == sorted(running), 120)
        held.unlink()
        for job in running:  # Slurm lets a job that was queued again wait for two minutes
            subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], env=environment, check=True)
        until(lambda: not jobs(environment, "RUNNING,PENDING,COMPLETING"), 300)
    results = load_sweep(tmp_path / "out")
    assert [trial.state for trial in results.trials] == ["complete"] * trials
    for trial in results.trials:
        computed = (trial.runs[0].directory / "steps.txt").read_text().split()
        assert computed == [str(step) for step in range(1, steps + 1)], (trial.number, computed)
    starts = [len(file.read_text().splitlines()) for file in tmp_path.glob("out/trials/*/seed-0/run/starts.txt")]
    assert sorted(starts) == [1, 1, 1, 2, 2]
    for trial in locate(str(tmp_path / "out")).study.get_trials():
        assert trial.user_attrs[names.OWNER].get("lost", 0) == 0


def half_way(folder: Path, steps: int) -> list[Path]:
    """Runs that are held in their middle."""
    found = folder.glob("out/trials/*/seed-0/run/steps.txt")
    return [file for file in found if file.read_text().split()[-1:] == [str(steps // 2)]]


def test_a_trial_over_two_nodes_trains_on_both(tmp_path: Path) -> None:
    rest = (
        '"optimizer.prompts_per_step" = 2\n"optimizer.micro_batch" = 1\n"evaluation.prompts" = 2\n'
        '"evaluation.samples_per_prompt" = 2\n"tracking.mode" = "disabled"\n'
        "[slurm]\nminutes = 10\nnodes = 2\ngpus = 0\ncpus = 1\n"
    )
    file = sweep_file(tmp_path, trials=1, steps=2, rest=rest)
    with slurm_cluster(tmp_path / "slurm", nodes=2, cpus=4) as environment:
        start_sweep(file, tmp_path, environment, workers=1)
        until(lambda: not jobs(environment, "RUNNING,PENDING,COMPLETING"), 400)
        logs = "\n".join(path.read_text(errors="replace")[-3000:] for path in tmp_path.glob("out/slurm/*.err"))
    (trial,) = load_sweep(tmp_path / "out").trials
    assert trial.state == "complete", logs
    states = (trial.runs[0].directory / "checkpoints").glob("step-000002/state/rng-*.json")
    assert sorted(path.name for path in states) == ["rng-00000.json", "rng-00001.json"]  # one for each process
