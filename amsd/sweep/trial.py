"""Runs the seeds of one point and turns what they measured into the trial's values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from amsd.errors import RunError
from amsd.evaluation.result import FID, KID
from amsd.sweep import optuna_access as names
from amsd.sweep.executor import Job, RunLog, Stop, TrialExecutor, Verdict
from amsd.sweep.points import Point
from amsd.sweep.schema import TRAINING, Constraint, Objective, Sweep

if TYPE_CHECKING:
    from optuna.trial import Trial

#: Share of the training log, from its end, that a `train/...` objective or constraint is the mean of.
_TAIL = 0.1


@dataclass(frozen=True)
class Outcome:
    """How a trial ended."""

    status: Literal["complete", "pruned", "released", "lost", "failed"]
    values: tuple[float, ...] = ()
    constraints: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None
    copy_of: int | None = None


def run_point(
    trial: Trial, point: Point, sweep: Sweep, executor: TrialExecutor, stop: Stop, fenced: Callable[[], bool]
) -> Outcome:
    """Run every seed that has no values yet; objectives and constraints are means over the seeds."""
    runs: list[dict[str, Any]] = [dict(run) for run in trial.user_attrs[names.RUNS]]
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
        trial.set_user_attr(names.RUNS, runs)
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
        self._reported = names.reported_steps(trial)
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
        raise RunError(f"{objective.label}: {where} in metrics.jsonl has no {key!r}{_reason(objective.metric)}")
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
            reason = _reason(objective.metric)
            raise RunError(f"{objective.label}: the evaluation of step {step} in metrics.jsonl has no {key!r}{reason}")


def _reason(metric: str) -> str:
    """What a missing metric means, where it is known."""
    if not metric.startswith(FID):
        return ""
    distance = KID + metric.removeprefix(FID)
    return (
        ": FID is left out where evaluation.prompts x evaluation.samples_per_prompt images do not exceed the "
        f"dimensions of the embedding (log.txt names both numbers). Raise one of the two, or use {distance}, which "
        "needs no such number"
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


def constraint_value(constraint: Constraint, log: RunLog) -> float:
    """The bounded quantity at the end of a run; errors as `objective_value`."""
    return objective_value(Objective(metric=constraint.metric), log)


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
