"""What a sweep has found so far, read from its storage: for tables, reports and scripts."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from statistics import stdev
from typing import TYPE_CHECKING, Any, Literal

from amsd.errors import UsageError
from amsd.recipe import Recipe
from amsd.sweep import optuna_access as names
from amsd.sweep.schema import Objective, Sweep
from amsd.sweep.search import settings_of
from amsd.sweep.study import StudyHandle, counted, locate
from amsd.urls import printable

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

State = Literal["queued", "running", "complete", "pruned", "failed"]


@dataclass(frozen=True)
class SeedRun:
    """One training run of a trial."""

    seed: int
    identity: str
    """Recipe identity: equal runs have equal identities."""
    directory: Path
    """Run directory (amsd.run_directory); may not exist yet, or lie on another machine."""
    values: Mapping[str, float]
    """Label of each objective and constraint -> value of this seed; empty until the run has ended."""
    errors: Mapping[str, float] = field(default_factory=dict)
    """Label of each objective -> standard error over prompts."""


@dataclass(frozen=True)
class TrialResult:
    """One point of the search."""

    number: int
    state: State
    params: Mapping[str, Any]
    """Dimension -> value, as searched."""
    settings: Mapping[str, Any]
    """Recipe key -> value that this trial sets (variants written out)."""
    cfg_mode: str
    """Guidance mode (docs/method.md section 2): `CFG trajectories`, `no guidance`, `full CFG` or `mixed`."""
    values: tuple[float, ...] | None
    """One per objective, mean over seeds; None unless complete."""
    constraints: Mapping[str, float]
    """Metric -> value, mean over seeds."""
    feasible: bool
    """Whether every constraint holds (also true while unknown)."""
    intermediate: Mapping[int, float]
    """First objective by step (seed index * training steps + step); only of single-objective sweeps."""
    runs: tuple[SeedRun, ...]
    duration: float | None
    """Seconds from start to end, of all attempts; of a running trial until now; None before the first attempt.
    (A trial that was handed back and is queued again keeps the seconds it has spent.)"""
    error: str | None
    """Why it failed."""
    copy_of: int | None
    """The trial with the same runs whose values were taken over."""
    attempts: int
    """How often it was started (2 and more: a worker was lost or interrupted)."""
    worker: str | None
    """Host and process that run or ran it."""
    started: datetime | None = None
    """When its last attempt began (UTC)."""
    ended: datetime | None = None
    """When it ended (UTC)."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """Training seeds of this trial."""
        return tuple(run.seed for run in self.runs)

    def error_of(self, label: str) -> float | None:
        """Standard error of the objective `label`: over seeds, or of a single seed over prompts; None if unknown."""
        if len(self.runs) == 1:
            return self.runs[0].errors.get(label)
        values = [run.values[label] for run in self.runs if label in run.values]
        return stdev(values) / len(values) ** 0.5 if len(values) > 1 else None


@dataclass(frozen=True)
class SweepResults:
    """A sweep and its trials, by number."""

    name: str
    directory: Path
    """Folder of the sweep; its trials lie in `trials/`."""
    storage: str
    """Storage URL, without passwords."""
    sweep: Sweep
    recipe: Recipe
    """Base recipe with the sweep's overrides."""
    trials: tuple[TrialResult, ...]
    stopped: str | None
    """Why the sweep stopped by itself, if it did."""

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """What is optimized; `TrialResult.values` has the same order."""
        return self.sweep.objective

    @property
    def complete(self) -> tuple[TrialResult, ...]:
        """Trials with values."""
        return tuple(trial for trial in self.trials if trial.values is not None)

    @property
    def best(self) -> TrialResult | None:
        """Feasible complete trial with the best first objective (ties: the earliest)."""
        candidates = [trial for trial in self.complete if trial.feasible]
        if not candidates:
            return None
        return min(candidates, key=lambda trial: (_losses(trial, self.objectives)[0], trial.number))

    @property
    def pareto(self) -> tuple[TrialResult, ...]:
        """Feasible complete trials that no other dominates, without copies, by number."""
        candidates = [trial for trial in self.complete if trial.feasible and trial.copy_of is None]
        losses = [_losses(trial, self.objectives) for trial in candidates]
        return tuple(
            trial
            for trial, mine in zip(candidates, losses, strict=True)
            if not any(dominates(other, mine) for other in losses)
        )

    @cached_property
    def importance(self) -> Mapping[str, tuple[float, float]]:
        """PED-ANOVA share of each dimension for the first objective, and its standard error; empty for few trials."""
        from amsd.sweep.algorithms import importance

        return importance(self.sweep.search, *self.searched)

    @property
    def searched(self) -> tuple[list[Mapping[str, Any]], list[float], bool]:
        """Points with values of the first objective, each once, and whether it is maximized."""
        own = [trial for trial in self.complete if trial.copy_of is None]
        values = [trial.values[0] for trial in own if trial.values is not None]
        return [trial.params for trial in own], values, self.objectives[0].direction == "maximize"


def dominates(left: Sequence[float], right: Sequence[float]) -> bool:
    """Whether losses `left` are nowhere above and somewhere below `right`."""
    pairs = list(zip(left, right, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def _losses(trial: TrialResult, objectives: Sequence[Objective]) -> tuple[float, ...]:
    return tuple(
        -value if objective.direction == "maximize" else value
        for value, objective in zip(trial.values or (), objectives, strict=True)
    )


def load_sweep(source: str | Path, study: str | None = None) -> SweepResults:
    """Read a sweep from its directory, or from a storage URL (with the study's name if the storage has several).

    Raises:
        UsageError: there is no sweep there, or no study of this name.
    """
    return results_of(locate(str(source), study))


def results_of(handle: StudyHandle) -> SweepResults:
    """Read every trial of an open study."""
    trials = counted(handle.study)
    return SweepResults(
        name=handle.study.study_name,
        directory=handle.directory,
        storage=printable(handle.url),
        sweep=handle.plan.sweep,
        recipe=handle.plan.recipe,
        trials=tuple(_trial(trial, handle) for trial in trials),
        stopped=handle.stop_reason(),
    )


def _trial(trial: FrozenTrial, handle: StudyHandle) -> TrialResult:
    # A waiting trial of the queued first points has its values only as fixed parameters yet.
    params = {**names.queued_params(trial), **trial.params}
    point, outcome = trial.user_attrs.get(names.POINT, {}), trial.user_attrs.get(names.OUTCOME, {})
    owner = trial.user_attrs.get(names.OWNER, {})
    constraints: dict[str, float] = outcome.get("constraints", {})
    bounds = {constraint.metric: constraint for constraint in handle.plan.sweep.constraint}
    return TrialResult(
        number=trial.number,
        state=_state(trial),
        params=params,
        settings=settings_of(handle.plan.sweep.search, params),
        cfg_mode=point.get("cfg_mode", ""),
        values=tuple(trial.values) if trial.state.name == "COMPLETE" else None,
        constraints=constraints,
        feasible=all(bounds[key].violation(value) <= 0 for key, value in constraints.items() if key in bounds),
        intermediate=dict(trial.intermediate_values),
        runs=tuple(_seed_run(run, handle.directory) for run in trial.user_attrs.get(names.RUNS, ())),
        duration=seconds_spent(trial),
        error=outcome.get("error"),
        copy_of=outcome.get("copy_of"),
        attempts=int(owner.get("attempt", 0)),
        worker=owner.get("worker"),
        started=datetime.fromtimestamp(owner["since"], UTC) if "since" in owner else None,
        ended=None if trial.datetime_complete is None else trial.datetime_complete.astimezone(UTC),
    )


def _seed_run(run: Mapping[str, Any], directory: Path) -> SeedRun:
    place = directory / str(run["directory"])
    if not place.resolve().is_relative_to(directory.resolve()):
        raise UsageError(f"the storage names a run outside the sweep's folder {directory}: {run['directory']}")
    return SeedRun(run["seed"], run["identity"], place, run.get("values", {}), run.get("errors", {}))


def seconds_spent(trial: FrozenTrial) -> float | None:
    """Seconds of all attempts that ended in good order, and of the one that is running; None before the first.

    A trial that was handed back and is queued again keeps its seconds: the budget counts them.
    """
    earlier: float | None = trial.user_attrs.get(names.OUTCOME, {}).get("seconds")
    since: float | None = trial.user_attrs.get(names.OWNER, {}).get("since")
    if trial.state.name != "RUNNING" or since is None:
        return earlier
    return (earlier or 0.0) + max(0.0, time.time() - since)


def _state(trial: FrozenTrial) -> State:
    states: dict[str, State] = {
        "WAITING": "queued", "RUNNING": "running", "COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed",
    }  # fmt: skip
    return states[trial.state.name]
