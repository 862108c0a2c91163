"""What runs one training run of a trial, as the sweep sees it; and how it is asked to end."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import FrameType
from typing import Literal, Protocol

from amsd.recipe import Recipe

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunLog:
    """What a run has measured so far."""

    evaluations: Mapping[int, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    """Step -> evaluation setting -> scalar (`eval/<metric>`, `eval/<metric>/difference`, ...)."""
    training: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    """Step -> scalars of that optimizer step."""
    best_step: int | None = None
    """Step of the best checkpoint."""

    def evaluation_steps(self) -> list[int]:
        """Evaluated steps, ascending; step 0 is the base model and no checkpoint."""
        return sorted(step for step in self.evaluations if step > 0)


@dataclass(frozen=True)
class Job:
    """One training run: a recipe in its own directory."""

    recipe: Recipe
    seed: int
    directory: Path
    """Folder of this run's files; training writes to `run/` inside it."""

    @property
    def run(self) -> Path:
        """The run directory."""
        return self.directory / "run"


class Verdict(Enum):
    """What a running job shall do next."""

    CONTINUE = "continue"
    PRUNE = "prune"
    RELEASE = "release"
    """End, keeping the checkpoints: the trial goes back into the queue."""


@dataclass(frozen=True)
class Ended:
    """How a job ended."""

    status: Literal["complete", "pruned", "released", "lost", "failed"]
    """`lost`: the machine that ran it is gone; `released`: it ended in good order and can go on."""
    log: RunLog
    error: str | None = None


Monitor = Callable[[RunLog], Verdict]


class TrialExecutor(Protocol):
    """Runs one job to its end, asking `monitor` what to do whenever something new was measured, and regularly."""

    def run(self, job: Job, monitor: Monitor) -> Ended:
        """Run the job; every process of it has ended when this returns."""
        ...


class Stop:
    """A request to end, set by a signal handler or another thread."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def request(self) -> None:
        """Ask the worker to hand back its trial and end."""
        self._event.set()

    @property
    def requested(self) -> bool:
        """Whether the worker shall end."""
        return self._event.is_set()

    def wait(self, seconds: float) -> None:
        """Sleep, but wake at a request."""
        self._event.wait(seconds)


@contextmanager
def on_signals(stop: Stop) -> Iterator[None]:
    """The first SIGINT, SIGTERM or SIGHUP asks to end in good order, the second one interrupts at once."""

    def handler(number: int, frame: FrameType | None) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        logger.warning("%s: ending; running trials go back into the queue.", signal.Signals(number).name)
        stop.request()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup: the terminal may close
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
