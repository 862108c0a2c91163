"""Runs the seeds of one point and turns what they measured into the trial's values."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from amsd.errors import RunError
from amsd.sweep import attributes as names
from amsd.sweep.executor import (
    Job,
    RunLog,
    TrialExecutor,
    Verdict,
    check_distance,
    constraint_value,
    objective_error,
    objective_value,
)
from amsd.sweep.points import Point
from amsd.sweep.schema import Objective, Sweep

if TYPE_CHECKING:
    from optuna.trial import Trial


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


@dataclass(frozen=True)
class Outcome:
    """How a trial ended."""

    status: Literal["complete", "pruned", "released", "failed"]
    values: tuple[float, ...] = ()
    constraints: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None
    copy_of: int | None = None


def run_point(
    trial: Trial, point: Point, sweep: Sweep, executor: TrialExecutor, stop: Stop, fenced: Callable[[], bool]
) -> Outcome:
    """Run every seed that has no values yet; objectives and constraints are means over the seeds."""
    stored = trial.storage.get_trial(trial._trial_id).user_attrs  # trial.user_attrs is as old as the claim
    runs: list[dict[str, Any]] = [dict(run) for run in stored[names.RUNS]]
    for index, (job, run) in enumerate(zip(point.jobs, runs, strict=True)):
        if "values" in run:  # done by an earlier attempt
            continue
        done = [earlier["values"] for earlier in runs[:index]]
        ended = executor.run(job, _Monitor(trial, sweep, index, job, done, stop, fenced))
        if ended.status != "complete":
            return Outcome(ended.status, error=ended.error)
        try:
            run["values"] = measure(sweep, ended.log)
            run["errors"] = errors(sweep, ended.log)
        except RunError as error:
            return Outcome("failed", error=str(error))
        trial.storage.set_trial_user_attr(trial._trial_id, names.RUNS, runs)
    means = {label: fmean(run["values"][label] for run in runs) for label in runs[0]["values"]}
    return Outcome(
        "complete",
        tuple(means[objective.label] for objective in sweep.objective),
        {constraint.metric: means[_label(constraint.metric)] for constraint in sweep.constraint},
    )


def measure(sweep: Sweep, log: RunLog) -> dict[str, float]:
    """Objectives by label and constraints by metric, of one run.

    Raises:
        RunError: the run has not measured one of them, or it is not finite.
    """
    values = {objective.label: objective_value(objective, log) for objective in sweep.objective}
    return values | {_label(c.metric): constraint_value(c, log) for c in sweep.constraint}


def errors(sweep: Sweep, log: RunLog) -> dict[str, float]:
    """Standard errors over prompts of the objectives by label, as far as the run has them."""
    found = {objective.label: objective_error(objective, log) for objective in sweep.objective}
    return {label: error for label, error in found.items() if error is not None}


def _label(metric: str) -> str:
    return f"constraint: {metric}"


class _Monitor:
    """Reports the first objective at every checkpoint of a run, and says whether the run shall go on.

    Seed i of a point reports at steps i*T + step, T the steps of a run: pruners compare equal seeds at equal steps.
    The reported value is the mean of the finished seeds and the running one. A run that will never have a wanted FID is
    ended by a RunError, which fails the trial.
    """

    def __init__(
        self, trial: Trial, sweep: Sweep, index: int, job: Job, done: list[dict[str, float]], stop: Stop,
        fenced: Callable[[], bool],
    ) -> None:  # fmt: skip
        self._trial = trial
        self._objective = sweep.objective[0]
        bounded = [Objective(metric=constraint.metric) for constraint in sweep.constraint]
        self._measured = [*sweep.objective, *bounded]
        self._single = len(sweep.objective) == 1
        self._prunes = sweep.pruner.name != "none"
        self._offset = index * job.recipe.training.steps
        self._done = [values[self._objective.label] for values in done]
        self._reported = set(trial.storage.get_trial(trial._trial_id).intermediate_values)
        self._stop = stop
        self._fenced = fenced

    def __call__(self, log: RunLog) -> Verdict:
        if self._stop.requested or self._fenced():
            return Verdict.RELEASE
        for objective in self._measured:
            check_distance(objective, log)
        if not self._single:
            return Verdict.CONTINUE
        for step in log.evaluation_steps():
            at = self._offset + step
            if at in self._reported:
                continue
            try:
                value = objective_value(self._objective, log, step)
            except RunError:  # not in the log yet, or another setting's line came first: the end decides
                continue
            self._trial.report(fmean([*self._done, value]), at)
            self._reported.add(at)
            if self._prunes and self._trial.should_prune():
                return Verdict.PRUNE
        return Verdict.CONTINUE
