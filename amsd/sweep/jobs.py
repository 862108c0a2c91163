"""One training run of a trial: what runs it, how it is asked to end, what it has measured, and the values in that."""

from __future__ import annotations

import logging
import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import FrameType
from typing import Literal, Protocol

from amsd.ends import SIGNALS, AnnouncedEnd, code_of, is_free
from amsd.errors import RunError
from amsd.evaluation.result import FID, KID
from amsd.recipe import Recipe
from amsd.sweep.schema import TRAINING, Objective, Sweep

logger = logging.getLogger(__name__)

#: Share of the training log, from its end, that a `train/...` objective or constraint is the mean of.
_TAIL = 0.1


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


#: The signal that asked this process to end; None as long as none has.
_first: int | None = None
_ALWAYS = (signal.SIGINT, signal.SIGTERM)


def exit_code() -> int:
    """Exit code of a command whose work a signal has ended: 130 after Ctrl-C, 75 after a scheduler's."""
    return code_of(_first)


@contextmanager
def on_signals(stop: Stop) -> Iterator[None]:
    """The first SIGINT, SIGTERM, SIGUSR1, SIGUSR2 or SIGHUP asks to end in good order, the second interrupts at once.

    Those that somebody else listens to (submitit) or that are ignored (nohup) are left alone.
    """
    global _first
    _first = None

    def handler(number: int, frame: FrameType | None) -> None:
        global _first
        if stop.requested:
            raise AnnouncedEnd(_first or number)
        logger.warning("%s: ending; running trials go back into the queue.", signal.Signals(number).name)
        _first = number
        stop.request()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    free = (number for number in SIGNALS if is_free(number))
    numbers = [*_ALWAYS, *(number for number in free if number not in _ALWAYS)]
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def measure(sweep: Sweep, log: RunLog) -> dict[str, float]:
    """Objectives by label and constraints by metric, of one run.

    Raises:
        RunError: the run has not measured one of them, or it is not finite.
    """
    values = {objective.label: objective_value(objective, log) for objective in sweep.objective}
    bounded = {constraint_label(c.metric): Objective(metric=c.metric) for c in sweep.constraint}
    return values | {label: objective_value(objective, log) for label, objective in bounded.items()}


def errors(sweep: Sweep, log: RunLog) -> dict[str, float]:
    """Standard errors over prompts of the objectives by label, as far as the run has them."""
    found = {objective.label: objective_error(objective, log) for objective in sweep.objective}
    return {label: error for label, error in found.items() if error is not None}


def constraint_label(metric: str) -> str:
    """Under which a constraint stands among the values of a run."""
    return f"constraint: {metric}"


def objective_value(objective: Objective, log: RunLog, step: int | None = None) -> float:
    """The objective at `step`, or where it counts (`at`).

    Raises:
        RunError: the run has not measured it, or it is not finite.
    """
    if objective.metric.startswith(TRAINING):
        return _training_value(objective.metric, log, step)
    step = _counting_step(objective, log) if step is None else step
    scalars = _scalars(objective, log, step)
    key = _key(objective)
    if key not in scalars:
        where = "no evaluation" if step is None else f"the evaluation of step {step}"
        raise _lacking(objective, where)
    return _finite(objective.label, scalars[key])


def check_distance(objective: Objective, log: RunLog) -> None:
    """Nothing, unless a FID is missing at an evaluated checkpoint: no later one of the run will have it either.

    Only the evaluator knows the dimensions of an embedding, so a sweep cannot be refused for it beforehand.

    Raises:
        RunError: says what to raise.
    """
    for step in log.evaluation_steps() if objective.metric.startswith(FID) else ():
        scalars, key = _scalars(objective, log, step), _key(objective)
        if scalars and key not in scalars:
            raise _lacking(objective, f"the evaluation of step {step}")


def _lacking(objective: Objective, where: str) -> RunError:
    """That an evaluation has not measured the objective, and what that means where it is known."""
    text = f"{objective.label}: {where} in metrics.jsonl has no {_key(objective)!r}"
    if not objective.metric.startswith(FID):
        return RunError(text)
    distance = KID + objective.metric.removeprefix(FID)
    return RunError(
        f"{text}: FID is left out where evaluation.prompts x evaluation.samples_per_prompt images do not exceed the "
        f"dimensions of the embedding (log.txt has both numbers). Raise prompts or samples, or use {distance}, which "
        "has no such limit"
    )


def objective_error(objective: Objective, log: RunLog) -> float | None:
    """Standard error over prompts of the objective where it counts; None of training scalars or where missing."""
    if objective.metric.startswith(TRAINING):
        return None
    part = "standard_error" if objective.value == "mean" else f"{objective.value}_standard_error"
    error = _scalars(objective, log, _counting_step(objective, log)).get(f"eval/{objective.metric}/{part}")
    return error if error is not None and math.isfinite(error) else None


def _counting_step(objective: Objective, log: RunLog) -> int | None:
    if objective.at == "best" and log.best_step is not None:
        return log.best_step
    return max(log.evaluation_steps(), default=None)


def _scalars(objective: Objective, log: RunLog, step: int | None) -> Mapping[str, float]:
    """Scalars of the evaluation that the objective is read from; empty where there is none."""
    settings = log.evaluations.get(step, {}) if step is not None else {}
    chosen = settings.get(objective.setting) if objective.setting else next(iter(settings.values()), None)
    return chosen or {}


def _key(objective: Objective) -> str:
    return f"eval/{objective.metric}" + ("" if objective.value == "mean" else f"/{objective.value}")


def _training_value(metric: str, log: RunLog, until: int | None) -> float:
    """Mean of a training scalar over the last tenth of its steps (single steps are noisy)."""
    key = metric.removeprefix(TRAINING)
    steps = sorted(step for step, values in log.training.items() if key in values and (until is None or step <= until))
    if not steps:
        raise RunError(f"{metric}: metrics.jsonl has no {key!r}")
    tail = steps[-max(1, math.ceil(_TAIL * len(steps))) :]
    return _finite(metric, sum(log.training[step][key] for step in tail) / len(tail))


def _finite(label: str, value: float) -> float:
    if not math.isfinite(value):
        raise RunError(f"{label} is {value}")
    return value
