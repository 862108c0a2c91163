"""This machine: workers as processes of their own, each with its share of the GPUs."""

from __future__ import annotations

import logging
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from amsd.ends import INTERRUPTED, REQUEUE
from amsd.errors import AmsdError, RunError, UsageError
from amsd.sweep.jobs import Stop, on_signals
from amsd.sweep.launchers import Launch, Launched
from amsd.sweep.launchers.processes import ProcessExecutor, leashed, tail
from amsd.sweep.schema import Execution
from amsd.sweep.storage import STORAGE_VARIABLE
from amsd.sweep.study import Consent, StudyHandle, create, join
from amsd.sweep.worker import Worker, WorkerReport, last_line

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Launched:
    """A worker process of this machine."""

    process: subprocess.Popen[bytes]
    log: Path
    begins: int
    """Where in the log its output begins, in bytes: earlier workers wrote what is before."""

    def said(self) -> str:
        """The error that it ended with; empty if it said nothing."""
        with self.log.open("rb") as output:
            text = tail(output, self.begins)
        return text[text.rindex(last_line(text)) :] if text else ""


class LocalLauncher:
    """Worker processes of this machine; this one waits for them and shows the sweep."""

    def launch(self, request: Launch) -> Launched:
        """Run the sweep to its end, or until it is interrupted."""
        handle = create(request.plan, request.folder, request.storage)
        with request.view(handle) as tick:
            report = run_workers(handle, request.workers, tick)
        return Launched(handle, report.interrupted)


def work(
    source: str, study: str | None = None, directory: Path | None = None, consent: Consent | None = None
) -> WorkerReport:
    """Join a sweep as one worker until nothing is left to do; SIGINT, SIGTERM or SIGHUP hands the trial back.

    Raises:
        UsageError: there is no such sweep, or it names what the user has not allowed.
        RunError: the storage stayed away, or the first trials all failed alike.
    """
    return run_worker(join(source, study, directory, consent))


def run_worker(handle: StudyHandle) -> WorkerReport:
    """Work on an open study in this process."""
    stop = Stop()
    with on_signals(stop):
        return Worker(handle, ProcessExecutor(handle.plan.sweep.execution), stop).run()


def run_workers(
    handle: StudyHandle, count: int, tick: Callable[[], None] = lambda: None, every: float = 2.0
) -> WorkerReport:
    """Start `count` worker processes on this machine and wait for all of them; `tick` is called meanwhile.

    A worker that dies takes nothing with it: its trial is queued again and the others go on. So they do when `tick`
    fails, which is logged. However this ends, also killed outright (Linux), the workers hand their trials back and end.

    Raises:
        RunError: the sweep stopped by itself, or every worker died.
    """
    each = gpus_per_trial(handle.plan.sweep.execution)
    command = ["--study", handle.study.study_name, "--directory", str(handle.directory)]
    stop = Stop()
    with on_signals(stop), _launched(command, handle.url, handle.directory, count, each) as workers:
        _watch(workers, stop, tick, every)
    if reason := handle.stop_reason():
        raise RunError(reason)
    _check_dead(workers, stop, handle.directory)
    return WorkerReport(0, stop.requested)


def run_agents(source: str, directory: Path, count: int, gpus: float) -> bool:
    """Start `count` W&B agents on this machine and wait for all of them; returns whether they were interrupted.

    Raises:
        RunError: every agent died.
    """
    stop = Stop()
    options = ["--directory", str(directory)]
    with on_signals(stop), _launched(options, source, directory, count, gpus) as workers:
        _watch(workers, stop, lambda: None, every=60)
    _check_dead(workers, stop, directory)
    return stop.requested


@contextmanager
def _launched(options: list[str], source: str, directory: Path, count: int, gpus: float) -> Iterator[list[_Launched]]:
    """Workers; those that still run at the end of the block hand back their trials, end and are waited for."""
    shares = gpu_shares(visible_gpus(), count, gpus)
    (directory / "workers").mkdir(parents=True, exist_ok=True)
    workers: list[_Launched] = []
    try:
        for index, share in enumerate(shares):
            workers.append(_spawn(options, source, share, directory / f"workers/{index}.txt"))
        yield workers
    finally:
        _terminate(workers)
        for worker in workers:
            worker.process.wait()


def _terminate(workers: list[_Launched]) -> None:
    for worker in workers:
        if worker.process.poll() is None:
            worker.process.terminate()


def _check_dead(workers: list[_Launched], stop: Stop, directory: Path) -> None:
    dead = [worker for worker in workers if worker.process.returncode not in (0, INTERRUPTED, REQUEUE)]
    if not dead or stop.requested:
        return
    codes = ", ".join(f"{worker.process.pid}: {worker.process.returncode}" for worker in dead)
    message = f"{len(dead)} of {len(workers)} workers died (process: exit status {codes}); see {directory}/workers"
    said = dict.fromkeys(text for worker in dead if (text := worker.said()))
    message = "\n".join([message, *said])
    if len(dead) == len(workers):
        raise RunError(message)
    logger.warning("%s", message)


def _watch(workers: list[_Launched], stop: Stop, tick: Callable[[], None], every: float) -> None:
    def alive() -> bool:
        return any(worker.process.poll() is None for worker in workers)

    follow(alive, stop, tick, every, lambda: _terminate(workers))


def follow(
    alive: Callable[[], bool],
    stop: Stop,
    tick: Callable[[], None],
    every: float,
    tell: Callable[[], None] = lambda: None,
) -> None:
    """Call `tick` regularly while the workers are alive, and `tell` them once when somebody asks for the end."""
    told, next_tick = False, time.monotonic()
    while alive():
        if stop.requested and not told:
            told = True
            tell()  # once: a second signal would interrupt them while they hand back
        if time.monotonic() >= next_tick:
            _try(tick)
            next_tick = time.monotonic() + every
        time.sleep(0.1)
    _try(tick)


def _try(tick: Callable[[], None]) -> None:
    try:
        tick()
    except (AmsdError, OSError) as error:  # the storage or the terminal is away; the workers need no view
        logger.warning("The sweep goes on, but its progress cannot be shown: %s: %s", type(error).__name__, error)


def _spawn(options: list[str], source: str, gpus: str | None, log: Path) -> _Launched:
    command = leashed([sys.executable, "-m", "amsd", "sweep", "worker", *options])
    environment = {**os.environ, STORAGE_VARIABLE: source}
    if gpus is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpus
    with log.open("ab") as output:
        begins = output.seek(0, os.SEEK_END)
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    return _Launched(process, log, begins)


def visible_gpus() -> list[str]:
    """GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; torch is not imported for it."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [device for device in chosen.split(",") if device.strip() and device.strip() != "-1"]
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    listed = subprocess.run([program, "-L"], capture_output=True, text=True, check=False)
    count = sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
    return [str(index) for index in range(count)]


def gpu_shares(gpus: list[str], workers: int, each: float) -> list[str | None]:
    """CUDA_VISIBLE_DEVICES of each worker, whose trials use `each` GPUs; None without GPUs. Below 1, workers share one.

    Raises:
        UsageError: the GPUs do not suffice.
    """
    if not gpus or each == 0:
        return [None] * workers
    per_gpu = int(1 / each + 1e-6) if each < 1 else 1
    fits = len(gpus) * per_gpu if each < 1 else int(len(gpus) // each)
    if workers > fits:
        room = f"Use --workers {fits}" if fits else "Lower execution.gpus or execution.processes"
        if fits and each == 1:
            share = math.floor(100 * len(gpus) / workers) / 100
            room += f", or let small trials share a GPU: --set execution.gpus={share:g}"
        raise UsageError(
            f"{workers} workers with {each:g} GPUs each do not fit: {len(gpus)} GPUs are visible ({','.join(gpus)}), "
            f"which hold {fits}. {room}."
        )
    if each < 1:
        return [gpus[index // per_gpu] for index in range(workers)]
    return [",".join(gpus[index * int(each) : (index + 1) * int(each)]) for index in range(workers)]


def gpus_per_trial(execution: Execution) -> float:
    """What a trial uses where there are GPUs."""
    return float(execution.processes) if execution.gpus is None else execution.gpus
