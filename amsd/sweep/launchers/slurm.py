"""Workers as Slurm jobs, through submitit: each job is one `amsd sweep worker` that joins by the storage's URL."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from amsd.errors import UsageError
from amsd.sweep.launchers import Launch, Launched
from amsd.sweep.plan import Plan
from amsd.sweep.schema import Slurm
from amsd.sweep.storage import STORAGE_VARIABLE
from amsd.sweep.study import StudyHandle, create


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


def make_executor(plan: Plan, folder: Path, cluster: Literal["slurm", "local"]) -> Any:
    """submitit's executor with the sweep's `[slurm]` section; its scripts and logs go to `slurm/`.

    Raises:
        UsageError: submitit is not installed, or this machine has no Slurm.
    """
    try:
        import submitit
    except ModuleNotFoundError:
        raise UsageError("--launcher slurm needs the package submitit: install amsd[slurm]") from None
    try:
        executor = submitit.AutoExecutor(folder=(folder / "slurm").resolve(), cluster=cluster)
    except RuntimeError as error:
        raise UsageError(f"--launcher slurm: this machine cannot submit Slurm jobs ({error})") from None
    executor.update_parameters(**parameters(plan.sweep.slurm, plan.sweep.name, plan.sweep.execution.processes))
    return executor


def submit_to(executor: Any, handle: StudyHandle, workers: int) -> list[Any]:
    """One job per worker."""
    from submitit.helpers import CommandFunction

    command = [sys.executable, "-m", "amsd", "sweep", "worker", "--study", handle.study.study_name]
    command += ["--directory", str(handle.directory)]
    return [executor.submit(CommandFunction(command, verbose=False)) for _ in range(workers)]


def parameters(slurm: Slurm, name: str, processes: int) -> dict[str, Any]:
    """The `[slurm]` section in submitit's words; SIGTERM comes early enough to hand the trial back."""
    options: dict[str, Any] = {
        "name": f"amsd-{name}",
        "timeout_min": slurm.minutes,
        "cpus_per_task": slurm.cpus,
        "gpus_per_node": processes if slurm.gpus is None else slurm.gpus,
        "nodes": 1,
    }
    if slurm.memory_gb is not None:
        options["mem_gb"] = slurm.memory_gb
    for key in ("partition", "account", "qos"):
        if getattr(slurm, key) is not None:
            options[f"slurm_{key}"] = getattr(slurm, key)
    if slurm.setup:
        options["slurm_setup"] = list(slurm.setup)
    return options


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
