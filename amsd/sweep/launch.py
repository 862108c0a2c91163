"""Starts workers: this process, N processes of this machine with their share of the GPUs."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from amsd.errors import RunError, UsageError
from amsd.sweep.process import ProcessExecutor
from amsd.sweep.study import StudyHandle, locate
from amsd.sweep.trial import Stop
from amsd.sweep.worker import Worker, WorkerReport

logger = logging.getLogger(__name__)

#: How a worker is told the storage without its password showing in the list of processes.
STORAGE_VARIABLE = "AMSD_SWEEP_STORAGE"


def work(source: str, study: str | None = None, directory: Path | None = None) -> WorkerReport:
    """Join a sweep as one worker until there is nothing left to do; Ctrl-C or SIGTERM hands the trial back.

    Raises:
        UsageError: there is no such sweep.
        RunError: the storage stayed away, or the first trials all failed alike.
    """
    from amsd.sweep.wandb_backend import SCHEME, join

    if source.startswith(SCHEME):
        join(source, directory or Path())
        return WorkerReport(0, interrupted=False)
    return run_worker(locate(source, study, directory))


def run_worker(handle: StudyHandle) -> WorkerReport:
    """Work on an open study in this process."""
    stop = Stop()
    with _on_signals(stop):
        return Worker(handle, ProcessExecutor(handle.plan.sweep.execution), stop).run()


def run_workers(
    handle: StudyHandle, count: int, tick: Callable[[], None] = lambda: None, every: float = 2.0
) -> WorkerReport:
    """Start `count` worker processes on this machine and wait for all of them; `tick` is called meanwhile.

    A worker that dies takes nothing with it: its trial is queued again and the others go on.

    Raises:
        RunError: the sweep stopped by itself, or every worker died.
    """
    study, processes = handle.study.study_name, handle.plan.sweep.execution.processes
    command = ["--study", study, "--directory", str(handle.directory)]
    stop = Stop()
    with _on_signals(stop):
        workers = _spawn_all(command, handle.url, handle.directory, count, processes)
        _watch(workers, stop, tick, every)
    if reason := handle.stop_reason():
        raise RunError(reason)
    _check_dead(workers, stop, handle.directory)
    return WorkerReport(0, stop.requested)


def run_agents(source: str, directory: Path, count: int, processes: int) -> None:
    """Start `count` W&B agents on this machine and wait for all of them.

    Raises:
        RunError: every agent died.
    """
    stop = Stop()
    with _on_signals(stop):
        workers = _spawn_all(["--directory", str(directory)], source, directory, count, processes)
        _watch(workers, stop, lambda: None, every=60)
    _check_dead(workers, stop, directory)


def _spawn_all(
    command: list[str], source: str, directory: Path, count: int, processes: int
) -> list[subprocess.Popen[bytes]]:
    shares = gpu_shares(visible_gpus(), count, processes)
    (directory / "workers").mkdir(parents=True, exist_ok=True)
    return [_spawn(command, source, share, directory / f"workers/{i}.txt") for i, share in enumerate(shares)]


def _check_dead(workers: list[subprocess.Popen[bytes]], stop: Stop, directory: Path) -> None:
    dead = [worker for worker in workers if worker.returncode not in (0, 130)]
    if not dead or stop.requested:
        return
    codes = ", ".join(f"{worker.pid}: {worker.returncode}" for worker in dead)
    message = f"{len(dead)} of {len(workers)} workers died (process: exit status {codes}); see {directory}/workers"
    if len(dead) == len(workers):
        raise RunError(message)
    logger.warning("%s", message)


def _watch(workers: list[subprocess.Popen[bytes]], stop: Stop, tick: Callable[[], None], every: float) -> None:
    told, next_tick = False, time.monotonic()
    while any(worker.poll() is None for worker in workers):
        if stop.requested and not told:
            told = True
            for worker in workers:
                if worker.poll() is None:
                    worker.terminate()
        if time.monotonic() >= next_tick:
            tick()
            next_tick = time.monotonic() + every
        time.sleep(0.1)
    tick()


def _spawn(options: list[str], source: str, gpus: str | None, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "amsd", "sweep", "worker", *options]
    environment = {**os.environ, STORAGE_VARIABLE: source}
    if gpus is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpus
    with log.open("ab") as output:
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )


@contextmanager
def _on_signals(stop: Stop) -> Iterator[None]:
    """The first SIGINT or SIGTERM asks to end in good order, the second one interrupts at once."""

    def handler(number: int, frame: FrameType | None) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        logger.warning("%s: ending; running trials go back into the queue.", signal.Signals(number).name)
        stop.request()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


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


def gpu_shares(gpus: list[str], workers: int, processes: int) -> list[str | None]:
    """CUDA_VISIBLE_DEVICES of each worker; None without GPUs. Each share has `processes` GPUs or more.

    Raises:
        UsageError: the GPUs do not suffice.
    """
    if not gpus:
        return [None] * workers
    if workers * processes > len(gpus):
        raise UsageError(
            f"{workers} workers with {processes} processes each need {workers * processes} GPUs, "
            f"but {len(gpus)} are visible ({','.join(gpus)}). Use --workers {max(1, len(gpus) // processes)}."
        )
    return [",".join(gpus[index * processes : (index + 1) * processes]) for index in range(workers)]
