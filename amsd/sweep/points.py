"""A point of the search as training runs: recipes, directories, and the key by which equal points are recognized."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amsd.recipe import Recipe, identity
from amsd.recipe.cost import training_cost
from amsd.recipe.guidance_modes import mode_of
from amsd.sweep import optuna_access as names
from amsd.sweep.executor import Job
from amsd.sweep.plan import SweepPlan
from amsd.sweep.space import LARGEST_GRID, grid, settings_of
from amsd.tracking.names import own_tags

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

logger = logging.getLogger(__name__)


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
    settings = settings_of(plan.sweep, params)
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
    rest = (point for point in grid(sweep) if point not in first) if sweep.sampler.name == "grid" else ()
    return list(islice(chain(first, rest), min(sweep.budget.trials or LARGEST_GRID, LARGEST_GRID)))


class Twins:
    """Finds the trials with a given key; looks at each trial only until its point is known, however many there are."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._places: dict[str, list[int]] = {}
        """Key -> places in the study's list of trials, which only grows."""
        self._unknown: list[int] = []
        self._seen = 0

    def of(self, number: int, key: str) -> list[FrozenTrial]:
        """The other trials with this key, as they are now."""
        trials = self._study.get_trials(deepcopy=False)
        places, self._unknown = [*self._unknown, *range(self._seen, len(trials))], []
        self._seen = len(trials)
        for place in places:
            point = trials[place].user_attrs.get(names.POINT)
            if point is not None:
                self._places.setdefault(point["key"], []).append(place)
            elif not trials[place].state.is_finished():  # one that failed before it had a point never gets one
                self._unknown.append(place)
        return [trials[place] for place in self._places.get(key, ()) if trials[place].number != number]

    def wait_for(
        self, trial: Trial, key: str, every: float, released: Callable[[], bool], wait: Callable[[float], None]
    ) -> FrozenTrial | None:
        """A finished trial with the same runs, if need be after waiting for it; looked for `every` so many seconds.

        Every worker first writes its key and then looks around, so of two twins at least one sees the other. It
        waits, unless the other is waiting too and has the higher number: exactly one of them runs.
        """
        from optuna.trial import TrialState

        waiting = False
        if trial.user_attrs.get(names.WAITS_FOR):  # left by a lost worker
            trial.set_user_attr(names.WAITS_FOR, False)
        while not released():
            others = self.of(trial.number, key)
            ended = [other for other in others if other.state in (TrialState.COMPLETE, TrialState.PRUNED)]
            if ended:
                return min(ended, key=lambda other: (other.state != TrialState.COMPLETE, other.number))
            running = [other for other in others if other.state == TrialState.RUNNING]
            if all(other.number > trial.number and other.user_attrs.get(names.WAITS_FOR) for other in running):
                break
            if not waiting:
                number = running[0].number
                logger.info("Trial %d equals trial %d, which is running; waiting for it.", trial.number, number)
                trial.set_user_attr(names.WAITS_FOR, True)
                waiting = True
            wait(every)
        if waiting:
            trial.set_user_attr(names.WAITS_FOR, False)
        return None
