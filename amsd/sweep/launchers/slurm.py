"""Slurm, through submitit: one job (of an array) per worker.

A job that is told to end (SIGUSR2 before its time limit, SIGTERM at a preemption) hands its trial back with a
checkpoint, which counts as no failure, and at the time limit it queues itself again.
"""

from __future__ import annotations

import logging
import os
import shlex
import socket
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

from amsd.errors import UsageError
from amsd.sweep.jobs import Job, Stop, on_signals
from amsd.sweep.launchers import Launch, Launched
from amsd.sweep.launchers.processes import ProcessExecutor, one_node, training
from amsd.sweep.schema import Execution, Slurm, SweepPlan
from amsd.sweep.storage import STORAGE_VARIABLE
from amsd.sweep.study import StudyHandle, create, join
from amsd.sweep.worker import Worker, WorkerReport

#: How often submitit may queue a job again: as often as there is work.
_REQUEUES = 100_000


class SlurmLauncher:
    """Submits one job per worker and returns; `cluster="local"` runs the jobs on this machine."""

    def __init__(self, cluster: Literal["slurm", "local"] = "slurm") -> None:
        self._cluster = cluster

    def launch(self, request: Launch) -> Launched:
        """Create the study and submit the jobs.

        Raises:
            UsageError: submitit or Slurm is missing, or the storage cannot be shared between machines.
        """
        if self._cluster == "slurm" and request.storage is None:
            raise UsageError("--launcher slurm: jobs on several machines need --storage postgresql://... or "
                             "grpc://... (or a journal file on a shared file system: journal:FILE)")  # fmt: skip
        executor = make_executor(request.plan, request.folder, self._cluster)
        handle = create(request.plan, request.folder, request.storage)
        with _environment(STORAGE_VARIABLE, handle.url):  # Slurm hands the environment on; nothing is written to disk
            jobs = submit_to(executor, handle, request.workers)
        return Launched(handle, jobs=tuple(str(job.job_id) for job in jobs))


class WorkerJob:
    """What a job runs: a worker; submitit pickles this and calls it.

    The worker runs in a thread, so that the main thread, in which signals arrive, can wait for it to hand back.
    """

    def __init__(self, study: str, directory: str) -> None:
        self.study = study
        self.directory = directory
        self._stop: Stop | None = None
        self._running = False

    def __call__(self) -> int:
        """Work until nothing is left to do, or until a signal arrives; returns how many trials ended here."""
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
        handle = join(os.environ[STORAGE_VARIABLE], self.study, Path(self.directory))
        stop, sweep = Stop(), handle.plan.sweep
        render = partial(several_nodes, sweep.slurm) if sweep.slurm.nodes > 1 else one_node
        ended: list[WorkerReport | BaseException] = []

        def work() -> None:
            try:
                ended.append(Worker(handle, ProcessExecutor(sweep.execution, render=render), stop).run())
            except BaseException as error:  # noqa: BLE001  (raised again below, in the main thread)
                ended.append(error)
            finally:
                self._running = False

        self._stop, self._running = stop, True
        with on_signals(stop):  # SIGUSR2 is submitit's and calls `checkpoint`
            threading.Thread(target=work, name="amsd-worker").start()
            self._wait()
        (result,) = ended
        if isinstance(result, BaseException):
            raise result
        return result.trials

    def checkpoint(self) -> Any:
        """Hand the trial back with its checkpoint; returns the job that submitit queues."""
        from submitit.helpers import DelayedSubmission

        if self._stop is not None:
            self._stop.request()
            self._wait()
        return DelayedSubmission(WorkerJob(self.study, self.directory))

    def _wait(self) -> None:
        # Neither a join nor an event: the main thread may be interrupted here, and then waits here once more.
        while self._running:
            time.sleep(0.05)


def make_executor(plan: SweepPlan, folder: Path, cluster: Literal["slurm", "local"]) -> Any:
    """submitit's executor with the sweep's `[slurm]` section; its scripts and logs go to `slurm/`.

    Raises:
        UsageError: submitit is not installed, or this machine has no Slurm.
    """
    try:
        import submitit
    except ModuleNotFoundError:
        raise UsageError("--launcher slurm needs the package submitit: uv pip install 'amsd[slurm]'") from None
    options = {f"{cluster}_max_num_timeout": _REQUEUES}
    try:
        executor = submitit.AutoExecutor(folder=(folder / "slurm").resolve(), cluster=cluster, **options)
    except RuntimeError as error:
        raise UsageError(f"--launcher slurm: this machine cannot submit Slurm jobs ({error})") from None
    executor.update_parameters(**parameters(plan.sweep.slurm, plan.sweep.name, plan.sweep.execution))
    return executor


def submit_to(executor: Any, handle: StudyHandle, workers: int) -> list[Any]:
    """One job per worker, as one array."""
    job = WorkerJob(handle.study.study_name, str(handle.directory))
    if workers == 1:
        return [executor.submit(job)]
    with executor.batch():
        return [executor.submit(job) for _ in range(workers)]


def parameters(slurm: Slurm, name: str, execution: Execution) -> dict[str, Any]:
    """The `[slurm]` section in submitit's words.

    Raises:
        UsageError: a trial would be killed before it has written its checkpoint.
    """
    if slurm.signal_seconds < execution.terminate_seconds + 10:
        raise UsageError(
            f"slurm.signal_seconds = {slurm.signal_seconds} leaves no time for execution.terminate_seconds = "
            f"{execution.terminate_seconds:g}: use {execution.terminate_seconds + 30:.0f} or more."
        )
    options: dict[str, Any] = {
        "name": f"amsd-{name}",
        "timeout_min": slurm.minutes,
        "cpus_per_task": slurm.cpus,
        "nodes": slurm.nodes,
        "slurm_signal_delay_s": slurm.signal_seconds,
    }
    if slurm.gres is None:
        options["gpus_per_node"] = execution.processes if slurm.gpus is None else slurm.gpus
    if slurm.memory_gb is not None:
        options["mem_gb"] = slurm.memory_gb
    for key in ("partition", "account", "qos", "gres", "constraint", "exclude"):
        if getattr(slurm, key) is not None:
            options[f"slurm_{key}"] = getattr(slurm, key)
    if slurm.setup:
        options["slurm_setup"] = list(slurm.setup)
    if slurm.options:
        options["slurm_additional_parameters"] = dict(slurm.options)
    if slurm.nodes > 1:  # one worker on the first node; its trials reach the others by `srun` (see `several_nodes`)
        options["slurm_srun_args"] = ["--nodes=1", "--ntasks=1", "--overlap"]
    return options


def several_nodes(slurm: Slurm, execution: Execution, job: Job, recipe: Path) -> list[str]:
    """The command line of a job on all nodes of this allocation: torchrun on each, which meet on this one."""
    gpus = execution.processes if slurm.gpus is None else slurm.gpus
    resources = [f"--gres={slurm.gres}"] if slurm.gres else [f"--gpus-per-node={gpus}"] if gpus else []
    srun = ["srun", "--overlap", "--kill-on-bad-exit=1", f"--nodes={slurm.nodes}", f"--ntasks={slurm.nodes}",
            "--ntasks-per-node=1", *resources]  # fmt: skip
    label = zlib.crc32(str(job.directory).encode())
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={slurm.nodes}", "--max-restarts=0",
                f"--nproc-per-node={execution.processes}", "--rdzv-backend=c10d", f"--rdzv-id=amsd-{label}",
                f"--rdzv-endpoint={socket.gethostname()}:{20000 + label % 20000}", "--no-python"]  # fmt: skip
    return [*srun, *torchrun, *training(execution, job, recipe)]


def script(plan: SweepPlan, folder: Path, workers: int) -> str:
    """The batch script that `--launcher slurm` would submit, for reading."""
    from submitit.slurm.slurm import SlurmExecutor, _make_sbatch_string

    words = parameters(plan.sweep.slurm, plan.sweep.name, plan.sweep.execution)
    names = SlurmExecutor._equivalence_dict() or {}
    flags = {names.get(key, key.removeprefix("slurm_")): value for key, value in words.items()}
    if "mem" in flags:
        flags["mem"] = f"{flags['mem']}GB"
    command = shlex.join([sys.executable, "-u", "-m", "submitit.core._submit", str(folder / "slurm")])
    count = workers if workers > 1 else None
    text: str = _make_sbatch_string(command=command, folder=folder / "slurm", map_count=count, **flags)
    return text


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
