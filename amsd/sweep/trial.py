"""A trial: the point that it tries, as the training runs of its seeds, and how they become its values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from amsd.errors import RunError
from amsd.recipe import Recipe, identity
from amsd.recipe.cost import training_cost
from amsd.recipe.guidance_modes import mode_of
from amsd.sweep import optuna_access as names
from amsd.sweep.jobs import (
    Job,
    RunLog,
    Stop,
    TrialExecutor,
    Verdict,
    check_distance,
    constraint_label,
    errors,
    measure,
    objective_value,
)
from amsd.sweep.schema import Objective, Sweep, SweepPlan
from amsd.sweep.search import LARGEST_GRID, grid, settings_of
from amsd.tracking.names import own_tags

if TYPE_CHECKING:
    from optuna.trial import Trial


@dataclass(frozen=True)
class Point:
    """Everything that one trial runs."""

    key: str
    """Equal for two trials exactly if all their runs and evaluations are equal."""
    directory: str
    """Relative to the sweep's folder."""
    cfg_mode: str
    cost: float
    """network forward-equivalents of all seeds."""
    jobs: tuple[Job, ...]

    def facts(self) -> dict[str, Any]:
        """What the storage keeps of the point."""
        return {"key": self.key, "cfg_mode": self.cfg_mode, "cost": self.cost, "directory": self.directory}


def make_point(plan: SweepPlan, folder: Path, number: int | str, params: Mapping[str, Any]) -> Point:
    """Resolve the recipes of a point, one per seed; `number` names its directory.

    Raises:
        RecipeError: the chosen values do not go together.
    """
    settings = settings_of(plan.sweep.search, params)
    label = f"{number:04d}" if isinstance(number, int) else number
    recipes = [plan.resolve({**settings, **_bookkeeping(plan, label, seed, params)}) for seed in plan.sweep.seeds]
    directory = f"trials/{label}-{identity(recipes[0])}"
    return Point(
        key=_key(recipes),
        directory=directory,
        cfg_mode=mode_of(recipes[0].guidance).name,
        cost=sum(training_cost(recipe, plan.sweep.execution.processes) for recipe in recipes),
        jobs=tuple(
            Job(recipe, seed, folder / directory / f"seed-{seed}")
            for recipe, seed in zip(recipes, plan.sweep.seeds, strict=True)
        ),
    )


def _key(recipes: list[Recipe]) -> str:
    parts = [[identity(recipe), recipe.evaluation.model_dump(mode="json")] for recipe in recipes]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _bookkeeping(plan: SweepPlan, label: str, seed: int, params: Mapping[str, Any]) -> dict[str, Any]:
    """Seed, and how the run is found in W&B: in the sweep's group, tagged with its parameters."""
    own = own_tags(plan.recipe.tracking)
    tags = [f"{name.rpartition('.')[2]}={_shown(value)}"[:64] for name, value in params.items()]
    return {
        "training.seed": seed,
        "tracking.group": plan.sweep.name,
        "tracking.name": f"{plan.sweep.name}-{label}-seed{seed}",
        "tracking.tags": [*own, *tags],
    }


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def points_to_queue(plan: SweepPlan) -> list[dict[str, Any]]:
    """First points, then the grid, up to the budget of trials; every other point is made when a worker is free for it.

    (Hundreds of waiting trials would be read again at every step: finished ones are cached, these are not.)
    """
    sweep = plan.sweep
    first = [dict(point) for point in sweep.first]
    rest = (point for point in grid(sweep.search) if point not in first) if sweep.sampler.name == "grid" else ()
    return list(islice(chain(first, rest), min(sweep.budget.trials or LARGEST_GRID, LARGEST_GRID)))


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
        {constraint.metric: means[constraint_label(constraint.metric)] for constraint in sweep.constraint},
    )


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
