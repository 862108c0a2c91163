"""Slurm: the script that would be submitted, and workers run by submitit's local executor."""

from __future__ import annotations

import signal
import socket
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
import pytest

from amsd.errors import UsageError
from amsd.sweep import optuna_access as names
from amsd.sweep.launchers import Launch
from amsd.sweep.launchers.slurm import SlurmLauncher, make_executor, script, several_nodes, submit_to
from amsd.sweep.results import load_sweep
from amsd.sweep.storage import STORAGE_VARIABLE, default_url
from amsd.sweep.study import create
from amsd.sweep.trial import make_point
from tests.sweep.conftest import MakePlan
from tests.waiting import gone, until

submitit = pytest.importorskip("submitit")


def test_the_script_asks_for_what_the_sweep_says(make_plan: MakePlan, tmp_path: Path) -> None:
    asked = {"partition": "gpu", "account": "lab", "minutes": 90, "cpus": 4, "memory_gb": 64, "constraint": "a100|h100",
             "exclude": "n3", "setup": ["module load cuda"], "options": {"mail-type": "END"}}  # fmt: skip
    text = script(make_plan(slurm=asked, execution={"processes": 2}), tmp_path, workers=16)
    for line in ("--job-name=amsd-small", "--time=90", "--cpus-per-task=4", "--gpus-per-node=2", "--mem=64GB",
                 "--partition=gpu", "--account=lab", "--nodes=1", "--constraint='a100|h100'", "--exclude=n3",
                 "--array=0-15%16", "--signal=USR2@180", "--mail-type=END"):  # fmt: skip
        assert f"#SBATCH {line}\n" in text
    assert text.index("module load cuda") < text.index("submitit.core._submit")
    gres = script(make_plan(slurm={"gres": "gpu:a100:2"}), tmp_path, workers=1)
    assert "#SBATCH --gres=gpu:a100:2\n" in gres
    assert "gpus-per-node" not in gres
    assert "--array" not in gres


def test_several_nodes_per_trial_meet_at_one_address(make_plan: MakePlan, tmp_path: Path) -> None:
    from torch.distributed.run import parse_args

    plan = make_plan(slurm={"nodes": 3, "gpus": 4}, execution={"processes": 4, "command": None})
    text = script(plan, tmp_path, workers=1)
    assert "#SBATCH --nodes=3\n" in text
    assert "srun --unbuffered" in text
    assert "--nodes=1 --ntasks=1 --overlap" in text  # the worker itself is on one node
    (job,) = make_point(plan, tmp_path, 0, {"schedule.eta": 0.9}).jobs
    command = several_nodes(plan.sweep.slurm, plan.sweep.execution, job, tmp_path / "recipe.toml")
    assert command[:7] == ["srun", "--overlap", "--kill-on-bad-exit=1", "--nodes=3", "--ntasks=3",
                           "--ntasks-per-node=1", "--gpus-per-node=4"]  # fmt: skip
    torchrun = command[command.index("torch.distributed.run") + 1 :]
    parsed = parse_args(torchrun)
    assert (parsed.nnodes, parsed.nproc_per_node, parsed.rdzv_backend, parsed.no_python) == ("3", "4", "c10d", True)
    host, _, port = parsed.rdzv_endpoint.rpartition(":")
    assert host == socket.gethostname()
    assert 20000 <= int(port) < 40000
    assert [parsed.training_script, *parsed.training_script_args][1:4] == ["-m", "amsd", "train"]
    again = several_nodes(plan.sweep.slurm, plan.sweep.execution, job, tmp_path / "recipe.toml")
    assert again == command  # every attempt of a trial meets there


def test_a_signal_that_comes_too_late_is_refused(make_plan: MakePlan, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"leaves no time for execution\.terminate_seconds = 60: use 90"):
        script(make_plan(slurm={"signal_seconds": 30}, execution={"terminate_seconds": 60.0}), tmp_path, 1)


def test_slurm_without_slurm_or_shared_storage_is_refused(
    make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # where there is no Slurm, whatever this machine has

    def launch(storage: str | None) -> None:
        SlurmLauncher().launch(Launch(make_plan(), tmp_path, storage, 2, lambda _: nullcontext(lambda: None)))

    with pytest.raises(UsageError, match="need --storage postgresql"):
        launch(None)
    with pytest.raises(UsageError, match="cannot submit Slurm jobs"):
        launch("postgresql://nobody@127.0.0.1:1/x")


@pytest.mark.slow
def test_two_jobs_of_the_local_executor_complete_the_sweep(
    make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(budget={"trials": 3})
    handle = create(plan, tmp_path)
    monkeypatch.setenv(STORAGE_VARIABLE, default_url(tmp_path))
    jobs = submit_to(make_executor(plan, tmp_path, "local"), handle, 2)
    for job in jobs:
        job.result()
    results = load_sweep(tmp_path)
    assert [trial.state for trial in results.trials] == ["complete"] * 3
    assert list((tmp_path / "slurm").glob("*_log.err"))


def task_of(job: Any) -> psutil.Process | None:
    """The process of a local job in which submitit runs the worker, once it has installed its handlers."""
    try:
        controller = psutil.Process(int(job.job_id))
        return next((child for child in controller.children() if "_submit" in " ".join(child.cmdline())), None)
    except psutil.NoSuchProcess:
        return None


@pytest.mark.slow
def test_ten_announced_ends_lose_nothing(make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm's own signal at the time limit, five times to each of two jobs, each time in the middle of a trial."""
    steps = 12
    plan = make_plan(
        override={"training.steps": steps, "training.checkpoint_every": 100}, budget={"trials": 3},
        execution={"heartbeat_seconds": 0.5, "lost_after_seconds": 600.0, "terminate_seconds": 20.0},
    )  # fmt: skip
    handle = create(plan, tmp_path)
    held = tmp_path / "held"
    held.touch()
    monkeypatch.setenv(STORAGE_VARIABLE, default_url(tmp_path))
    monkeypatch.setenv("FAKE_HELD_WHILE", str(held))
    jobs = submit_to(make_executor(plan, tmp_path, "local"), handle, 2)
    for _ in range(5):
        for job in jobs:
            until(lambda job=job: held_half_way(job, steps), 300)
            task = task_of(job)
            assert task is not None
            task.send_signal(signal.SIGUSR2)
            until(lambda pid=task.pid: gone(pid), 300)
    held.unlink()
    for job in jobs:
        job.result()
    results = load_sweep(tmp_path)
    assert [trial.state for trial in results.trials] == ["complete"] * 3
    assert sum(trial.attempts - 1 for trial in results.trials) == 10
    for trial in handle.study.get_trials():
        assert trial.user_attrs[names.OWNER]["lost"] == 0
    for trial in results.trials:
        computed = [int(line) for line in (trial.runs[0].directory / "steps.txt").read_text().split()]
        assert sorted(computed) == list(range(1, steps + 1))  # checkpoints came only from the announced ends


def held_half_way(job: Any, steps: int) -> bool:
    """Whether the training of this job's worker has come to the middle of its run, where it waits."""
    task = task_of(job)
    try:
        children = task.children() if task is not None else []
        commands = {child.pid: child.cmdline() for child in children}
    except psutil.NoSuchProcess:
        return False
    for pid, command in commands.items():
        if "--output" in command:
            run = Path(command[command.index("--output") + 1])
            begun = (run / "starts.txt").is_file() and (run / "starts.txt").read_text().splitlines()[-1].split()[0]
            computed = (run / "steps.txt").read_text().split() if (run / "steps.txt").is_file() else ["0"]
            return begun == str(pid) and int(computed[-1]) == steps // 2
    return False
