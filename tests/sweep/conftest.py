"""A small sweep over `recipes/shapes.toml` whose trials are run by the fake trainer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from amsd.recipe.catalog import folder
from amsd.recipe.load import read_toml
from amsd.sweep.load import plan_from
from amsd.sweep.schema import SweepPlan

FAKE_TRAINER = Path(__file__).with_name("fake_trainer.py")
MakePlan = Callable[..., SweepPlan]

SWEEP: dict[str, Any] = {
    "name": "small",
    "recipe": "shapes",
    "override": {"training.steps": 4, "training.checkpoint_every": 2},
    "search": {"schedule.eta": {"low": 0.5, "high": 1.5}},
    "objective": [{"metric": "shapes:right"}],
    "sampler": {"name": "random", "seed": 0},
    "budget": {"trials": 3},
    "execution": {
        "command": [sys.executable, str(FAKE_TRAINER)],
        "poll_seconds": 0.05,
        "heartbeat_seconds": 0.2,
        "lost_after_seconds": 1.5,
        "terminate_seconds": 5.0,
    },
}


@pytest.fixture
def make_plan() -> MakePlan:
    """The small sweep with some of its keys replaced."""

    def make(**changes: Any) -> SweepPlan:
        tree = deepcopy(SWEEP)
        for key, value in changes.items():
            tree[key] = {**tree[key], **value} if key == "execution" else value
        return plan_from(tree, read_toml(folder("recipes") / "shapes.toml"))

    return make
