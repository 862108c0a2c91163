"""Runs a trial as `python -m amsd train` in processes of its own, and ends all of them when it must."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

from amsd import leash
from amsd.ends import REQUEUE
from amsd.errors import UsageError
from amsd.files import write_text
from amsd.lock import locked
from amsd.recipe import dump_toml
from amsd.run_directory import RunDirectory
from amsd.sweep.jobs import Ended, Job, Monitor, RunLog, Verdict
from amsd.sweep.schema import Execution
from amsd.sweep.storage import STORAGE_VARIABLE
from amsd.tracking.log import LogFollower, read_log

if TYPE_CHECKING:
    import psutil

logger = logging.getLogger(__name__)

#: Environment variable that marks every process of a run, launcher and ranks alike; its value is the run's folder.
MARK = "AMSD_SWEEP_RUN"
_TAIL_LINES = 25
#: Bytes at the end of a log that hold its last step: a line has about two thousand.
_TAIL = 32768


def one_node(execution: Execution, job: Job, recipe: Path) -> list[str]:
    """The command line of a job on this machine."""
    several = ["--processes", str(execution.processes)] if execution.processes > 1 else []
    return [*training(execution, job, recipe), *several]


def training(execution: Execution, job: Job, recipe: Path) -> list[str]:
    """The command line of one process of a job."""
    command = list(execution.command or (sys.executable, "-m", "amsd", "train"))
    # A run that has begun is continued; a fresh one has nothing to resume, and says nothing of it.
    return [*command, str(recipe), "--output", str(job.run), *(["--resume"] if RunDirectory(job.run).used else [])]


@dataclass(frozen=True)
class ProcessExecutor:
    """Each job is a subprocess of this interpreter; its ranks read the same recipe file, so they cannot disagree."""

    execution: Execution
    environment: Mapping[str, str] = field(default_factory=dict)
    """Added to this process's environment, such as CUDA_VISIBLE_DEVICES."""
    render: Callable[[Execution, Job, Path], list[str]] = one_node
    """Job and recipe file -> command line."""

    def run(self, job: Job, monitor: Monitor) -> Ended:
        """Start or resume the job and follow its log until it ends or `monitor` wants it to.

        Where a worker of another machine, which was taken for dead, still holds the job's folder, this waits for it to
        let go, and gives the job up as lost if it does not.
        """
        end_processes(str(job.directory.resolve()), self.execution.terminate_seconds)  # left by a worker killed here
        job.directory.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            try:
                held.enter_context(locked(job.directory, wait=self.execution.terminate_seconds))
            except UsageError as error:
                return Ended("lost", RunLog(), str(error))
            return self._run(job, monitor)

    def _run(self, job: Job, monitor: Monitor) -> Ended:
        mark = str(job.directory.resolve())
        recipe = job.directory / "recipe.toml"
        write_text(recipe, dump_toml(job.recipe))
        follower = Follower(job.run)
        with (job.directory / "log.txt").open("ab+") as output:
            start = output.seek(0, os.SEEK_END)
            process = self._start(job, recipe, mark, output)
            try:
                verdict = self._follow(process, follower, monitor)
            finally:
                end_processes(mark, self.execution.terminate_seconds, process)
            return _ending(process.returncode, verdict, follower.read(), tail(output, start))

    def _start(self, job: Job, recipe: Path, mark: str, output: IO[bytes]) -> subprocess.Popen[bytes]:
        inherited = {name: value for name, value in os.environ.items() if name != STORAGE_VARIABLE}  # has a password
        return subprocess.Popen(
            leashed(self.render(self.execution, job, recipe)),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**inherited, **self.environment, MARK: mark},
            start_new_session=True,  # Ctrl-C reaches the worker, which then decides
        )

    def _follow(self, process: subprocess.Popen[bytes], follower: Follower, monitor: Monitor) -> Verdict:
        while True:
            try:
                process.wait(self.execution.poll_seconds)
            except subprocess.TimeoutExpired:
                verdict = monitor(follower.read())
                if verdict is not Verdict.CONTINUE:
                    return verdict
            else:
                verdict = monitor(follower.read())
                # A run that is through counts, whatever the pruner thinks of its last checkpoint.
                return verdict if verdict is Verdict.RELEASE and process.returncode != 0 else Verdict.CONTINUE


def leashed(command: list[str]) -> list[str]:
    """The command in the same process, which gets SIGTERM should this one die (Linux)."""
    return [sys.executable, "-I", leash.__file__, str(os.getpid()), *command]


def end_processes(mark: str, grace: float, child: subprocess.Popen[bytes] | None = None) -> None:
    """End every process of this machine that carries `mark`: SIGTERM, then SIGKILL after `grace` seconds.

    `child` is told first and alone: it ends its ranks in good order, and a second signal would cut their checkpoint
    short. Ranks are found by the mark and not by process group, because torch's launcher gives each its own session.
    """
    import psutil

    deadline = time.monotonic() + grace
    if child is not None and child.poll() is None:
        child.terminate()
    told: set[int] = set() if child is None else {child.pid}
    while members := _members(mark):
        late = time.monotonic() > deadline
        busy = child is not None and child.poll() is None  # which also reaps it
        for member in members:
            try:
                if late:
                    member.kill()
                elif member.pid not in told and not busy:
                    member.terminate()
                    told.add(member.pid)
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.05)
    if child is not None:
        child.wait()


def _members(mark: str) -> list[psutil.Process]:
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return [process for process in found if process.pid != os.getpid()]


def _ending(code: int, verdict: Verdict, log: RunLog, said: str) -> Ended:
    match verdict:
        case Verdict.PRUNE:
            return Ended("pruned", log)
        case Verdict.RELEASE:
            return Ended("released", log)
    if code == 0:
        return Ended("complete", log)
    if code == REQUEUE:
        return Ended("released", log)
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return Ended("failed", log, f"{said}\nended by {name}{hint}".strip())
    return Ended("failed", log, said or f"ended with exit status {code} and said nothing")


def tail(output: IO[bytes], start: int) -> str:
    """Last lines that were written after byte `start`, without terminal colors."""
    output.seek(start)
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", output.read().decode("utf-8", errors="replace"))
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    return "\n".join(lines[-_TAIL_LINES:])


class Follower:
    """Collects what a run has logged; each line is read once, a rewritten file from its start.

    The log, not the checkpoints' own files, is followed: retention may remove a checkpoint before it is looked at.
    """

    def __init__(self, run: Path) -> None:
        self._run = RunDirectory(run)
        self._log = LogFollower(self._run.metrics)
        self._evaluations: dict[int, dict[str, dict[str, float]]] = {}
        self._training: dict[int, dict[str, float]] = {}

    def read(self) -> RunLog:
        """Everything logged so far; an unfinished last line waits for the next call."""
        log, rewritten = self._log.new()
        if rewritten:
            self._evaluations.clear()
            self._training.clear()
        for entry in log.entries:
            if entry.kind == "evaluation":
                self._evaluations.setdefault(entry.step, {})[entry.name] = dict(entry.values)
            elif entry.kind == "step":
                self._training[entry.step] = dict(entry.values)
        best = self._run.pointer("best")
        return RunLog(
            evaluations={step: dict(settings) for step, settings in self._evaluations.items()},
            training=dict(self._training),
            best_step=int(best.name.removeprefix("step-")) if best else None,
        )


def last_step(run: Path) -> int | None:
    """Last optimizer step in a run's log, from the log's last lines; None where there is none."""
    file = RunDirectory(run).metrics
    if not file.is_file():
        return None
    entries = read_log(file, max(0, file.stat().st_size - _TAIL)).entries
    # A notice may name any step.
    return next((entry.step for entry in reversed(entries) if entry.kind != "notice"), None)
