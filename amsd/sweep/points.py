"""A point of the search as training runs: recipes, directories, and the key by which equal points are recognised."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amsd.recipe import Recipe, identity
from amsd.recipe.cost import training_cost
from amsd.sweep.executor import Job
from amsd.sweep.load import Plan
from amsd.sweep.results import cfg_mode
from amsd.sweep.space import settings_of


@dataclass(frozen=True)
class Point:
    """Everything that one trial runs."""

    key: str
    """Equal for two trials exactly if all their runs and evaluations are equal."""
    directory: str
    """Relative to the sweep's folder."""
    cfg_mode: str
    cost: float
    """UNet forward-equivalents of all seeds."""
    jobs: tuple[Job, ...]

    def facts(self) -> dict[str, Any]:
        """What the storage keeps of the point."""
        return {"key": self.key, "cfg_mode": self.cfg_mode, "cost": self.cost, "directory": self.directory}


def make_point(plan: Plan, folder: Path, number: int | str, params: Mapping[str, Any]) -> Point:
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
        cfg_mode=cfg_mode(recipes[0]),
        cost=sum(training_cost(recipe, plan.sweep.execution.processes) for recipe in recipes),
        jobs=tuple(
            Job(recipe, seed, folder / directory / f"seed-{seed}")
            for recipe, seed in zip(recipes, plan.sweep.seeds, strict=True)
        ),
    )


def _key(recipes: list[Recipe]) -> str:
    parts = [[identity(recipe), recipe.evaluation.model_dump(mode="json")] for recipe in recipes]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _bookkeeping(plan: Plan, label: str, seed: int, params: Mapping[str, Any]) -> dict[str, Any]:
    """Seed, and how the run is found in W&B: in the sweep's group, tagged with its parameters."""
    own = list(plan.recipe.tracking.tags)
    tags = [f"{name.rpartition('.')[2]}={_shown(value)}"[:64] for name, value in params.items()]
    return {
        "training.seed": seed,
        "tracking.group": plan.sweep.name,
        "tracking.name": f"{plan.sweep.name}-{label}-seed{seed}",
        "tracking.tags": [*own, *tags],
    }


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
