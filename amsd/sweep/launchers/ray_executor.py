"""One trial on a Ray cluster: an actor that runs its training, and the driver's side of it."""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
import threading
import uuid
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from amsd import __version__
from amsd.errors import AmsdError, RunError
from amsd.run_directory import RunDirectory
from amsd.sweep.jobs import Ended, Job, Monitor, RunLog, TrialExecutor, Verdict
from amsd.sweep.schema import TRAINING, Sweep
from amsd.sweep.study import StudyHandle


@dataclass(frozen=True)
class Need:
    """What one trial asks of a node."""

    cpus: float
    gpus: float
    """Below 1: trials share a GPU."""


@dataclass
class Host:
    """An actor that is placed on a node."""

    actor: Any
    carries: bool
    """Whether files must be carried there and back: its node does not see the sweep's folder."""


class Hosts:
    """The actors of a sweep that run nothing now. Its workers share them, so that none keeps room from another."""

    def __init__(self) -> None:
        self._free: list[Host] = []
        self._lock = threading.Lock()

    def take(self) -> Host | None:
        """One that is alive; None if there is none."""
        import ray

        while True:
            with self._lock:
                if not self._free:
                    return None
                host = self._free.pop()
            try:
                if ray.wait([host.actor.poll.remote()], timeout=10)[0]:
                    ray.get(host.actor.poll.remote())
                    return host
            except ray.exceptions.RayActorError:
                continue

    def give(self, host: Host) -> None:
        """Let the others have it."""
        with self._lock:
            self._free.append(host)

    def close(self) -> None:
        """Give the resources of all back."""
        import ray

        with self._lock:
            for host in self._free:
                ray.kill(host.actor)
            self._free.clear()


class RayExecutor:
    """Runs jobs one after the other on actors somewhere in the cluster."""

    def __init__(
        self, handle: StudyHandle, need: Need, inner: TrialExecutor, hosts: Hosts, shared: bool | None = None
    ) -> None:
        """`shared`: whether nodes see the sweep's folder; None: each is asked."""
        self._sweep = handle.plan.sweep
        self._folder = handle.directory
        self._need = need
        self._inner = inner
        self._hosts = hosts
        self._shared = shared

    def run(self, job: Job, monitor: Monitor) -> Ended:
        """Run the job on some node; `lost` if that node or its actor died."""
        import ray

        log = RunLog()
        try:
            host = self._hosts.take() or self._placed(monitor)
            if host is None:
                return Ended("released", log)
            ended = self._followed(host, job, monitor)
        except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError, ray.exceptions.NodeDiedError) as error:
            return Ended("lost", log, f"its node or process died: {str(error).strip().splitlines()[0]}")
        self._hosts.give(host)
        if ended.status == "complete":
            monitor(ended.log)
        return ended

    def _followed(self, host: Host, job: Job, monitor: Monitor) -> Ended:
        """Start the job on a host, tell the monitor what it measures, and the host what the monitor wants."""
        import ray

        archive = pack(job.run) if host.carries and RunDirectory(job.run).used else None
        call = host.actor.run.remote(job, archive, host.carries)
        log, verdict, fetched = RunLog(), Verdict.CONTINUE, None
        while not ray.wait([call], timeout=self._sweep.execution.poll_seconds)[0]:
            if verdict is not Verdict.CONTINUE:
                continue
            found, newest = ray.get(host.actor.poll.remote())
            log = found or log
            if host.carries and newest is not None and newest != fetched:
                unpack(ray.get(host.actor.fetch.remote()), job.run)
                fetched = newest
            verdict = self._judge(host, monitor, log, call)
            if verdict is not Verdict.CONTINUE:
                ray.get(host.actor.tell.remote(verdict))
        ended: Ended = ray.get(call)
        if host.carries:
            unpack(ray.get(host.actor.fetch.remote()), job.run)
        return ended

    def _placed(self, monitor: Monitor) -> Host | None:
        """A new actor, or one that becomes free while the cluster has no room; None if the trial is released."""
        import ray

        kind = ray.remote(TrialHost).options(
            num_cpus=self._need.cpus, num_gpus=self._need.gpus, max_concurrency=4, max_restarts=0
        )
        actor = kind.remote(self._inner, _scalars(self._sweep), str(Path.cwd()))
        token = self._folder / f".shared-{uuid.uuid4().hex}"
        token.touch()
        try:
            answer = actor.meet.remote(str(token))
            while not ray.wait([answer], timeout=0.5)[0]:
                free = self._hosts.take()
                released = monitor(RunLog()) is not Verdict.CONTINUE
                if free is not None or released:
                    ray.kill(actor)
                    return free
            version, sees = ray.get(answer)
        finally:
            token.unlink()
        if version != __version__:
            ray.kill(actor)
            raise RunError(f"a node of the Ray cluster has amsd {version}, this machine has {__version__}: install "
                           "the same on every node")  # fmt: skip
        return Host(actor, carries=not (sees if self._shared is None else self._shared))

    def _judge(self, host: Host, monitor: Monitor, log: RunLog, call: Any) -> Verdict:
        """What the monitor wants; where it raises, the job is ended first."""
        import ray

        try:
            return monitor(log)
        except AmsdError:
            ray.get(host.actor.tell.remote(Verdict.RELEASE))
            ray.wait([call], timeout=self._sweep.execution.terminate_seconds + 30)
            raise


class TrialHost:
    """The actor: runs one job at a time, and meanwhile answers what it has measured. Its calls come in threads."""

    def __init__(self, inner: TrialExecutor, scalars: frozenset[str], folder: str) -> None:
        self._inner = inner
        self._scalars = scalars
        self._verdict = Verdict.CONTINUE
        self._log: RunLog | None = None
        self._run: Path | None = None
        if Path(folder).is_dir():  # relative paths in a recipe mean the same as where the sweep was started
            os.chdir(folder)

    def meet(self, token: str) -> tuple[str, bool]:
        """Version of amsd here, and whether the sweep's folder is seen from here."""
        return __version__, Path(token).exists()

    def run(self, job: Job, archive: bytes | None, carries: bool) -> Ended:
        """Run a job to its end; where the sweep's folder is not seen, in a folder of this node."""
        if carries:
            place = zlib.crc32(str(job.directory).encode())
            job = replace(job, directory=Path(tempfile.gettempdir()) / f"amsd-ray-{os.getuid()}" / f"{place:08x}")
        if archive is not None:
            unpack(archive, job.run)
        self._verdict, self._log, self._run = Verdict.CONTINUE, None, job.run
        ended = self._inner.run(job, self._measured)
        return replace(ended, log=self._slim(ended.log))

    def poll(self) -> tuple[RunLog | None, str | None]:
        """What was measured, if there is anything new, and the name of the newest checkpoint."""
        log, self._log = self._log, None
        newest = RunDirectory(self._run).pointer("latest") if self._run is not None else None
        return log, newest.name if newest else None

    def tell(self, verdict: Verdict) -> None:
        """Have the running job ended."""
        self._verdict = verdict

    def fetch(self) -> bytes:
        """The run's files with its newest and its best checkpoint."""
        assert self._run is not None
        return pack(self._run)

    def _measured(self, log: RunLog) -> Verdict:
        self._log = self._slim(log)
        return self._verdict

    def _slim(self, log: RunLog) -> RunLog:
        """Without the training scalars that no objective asks for."""
        kept = {step: {k: v for k, v in values.items() if k in self._scalars} for step, values in log.training.items()}
        return replace(log, training=kept)


def _scalars(sweep: Sweep) -> frozenset[str]:
    metrics = [objective.metric for objective in sweep.objective] + [bound.metric for bound in sweep.constraint]
    return frozenset(metric.removeprefix(TRAINING) for metric in metrics if metric.startswith(TRAINING))


def pack(run: Path) -> bytes:
    """A run directory as a tar file: everything but W&B's own files and older checkpoints."""
    directory = RunDirectory(run)
    pointers = [directory.pointer(name) for name in ("latest", "best")]
    kept = {pointer.name for pointer in pointers if pointer is not None}
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for path in sorted(run.rglob("*")):
            parts = path.relative_to(run).parts
            old = parts[0] == "checkpoints" and len(parts) > 1 and parts[1].startswith("step-") and parts[1] not in kept
            if path.is_file() and parts[0] != "wandb" and not old and not parts[-1].endswith(".tmp"):
                archive.add(path, arcname="/".join(parts))
    return stream.getvalue()


def unpack(archive: bytes, run: Path) -> None:
    """Write what `pack` read; a file that is there is replaced."""
    run.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(run, filter="data")
