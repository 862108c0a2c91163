"""The runs that are compared: the recipe `shapes` but for the method, all at the same number of network calls."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from amsd.recipe import Recipe, load_recipe
from amsd.recipe.cost import forwards_per_step

METHODS: dict[str, dict[str, Any]] = {
    "am": {"method.name": "am"},
    "buffer-am": {"method.name": "buffer-am", "method.buffer.size": 32, "method.buffer.passes": 4},
    "eam": {"method.name": "eam"},
    "ram": {"method.name": "ram"},
    "draft, all steps": {"method.name": "draft", "method.backpropagated_steps": "all"},
    "draft, last step": {"method.name": "draft", "method.backpropagated_steps": 1},
    "refl": {"method.name": "refl"},
    "ddpo": {"method.name": "ddpo"},
}
"""Name to assignments. Keys that are not named have the values of the recipe or of the method."""
RATES = (4e-4, 1.2e-3, 1.3e-4)
"""Learning rates of the sweep; the recipe's own first."""
BUDGET = 24_000
"""Network forward-equivalents of a run, without evaluation, unless told otherwise: those of the recipe itself."""
COMMON: dict[str, Any] = {
    "optimizer.warmup_steps": 2, "training.keep": 100, "tracking.trackers": "none",
    "evaluation.samples_per_prompt": 4, "evaluation.images": 0, "evaluation.diversity": ["pixels", "shapes:classifier"],
}  # fmt: skip


@dataclass(frozen=True)
class Length:
    """How long every run is."""

    budget: int = BUDGET
    """Network forward-equivalents."""
    checkpoints: int = 4
    """Evaluated steps, evenly spaced."""

    @property
    def name(self) -> str:
        """Of the folder of such runs."""
        return f"{self.budget}-calls-{self.checkpoints}-checkpoints"


def recipe_of(name: str, rate: float, seed: int, length: Length) -> Recipe:
    """The recipe of one run: as many steps as the budget allows, a multiple of the number of checkpoints."""
    values = {**COMMON, **METHODS[name], "optimizer.learning_rate": rate, "training.seed": seed}
    assignments = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    each = forwards_per_step(load_recipe("shapes", assignments))
    every = max(1, round(length.budget / each / length.checkpoints))
    lengths = [f"training.steps={every * length.checkpoints}", f"training.checkpoint_every={every}"]
    return load_recipe("shapes", [*assignments, *lengths, f"training.validate_every={every}"])


def folder(out: Path, name: str, rate: float, seed: int) -> Path:
    """Where one run lies."""
    return out / name.replace(", ", "-").replace(" ", "-") / f"lr-{rate:g}" / f"seed-{seed}"


def is_finished(run: Path) -> bool:
    """Whether a run was trained and evaluated to its end."""
    return (run / "finished").is_file()


def run_missing(out: Path, name: str, rate: float, seed: int, length: Length) -> None:
    """Train one run to its end, unless that was done before."""
    from amsd.experiment.train import train

    run = folder(out, name, rate, seed)
    if is_finished(run):
        return
    start = time.monotonic()
    train(recipe_of(name, rate, seed, length), run, resume=(run / "recipe.toml").is_file())
    (run / "finished").touch()
    typer.echo(f"{run}: {time.monotonic() - start:.0f} s")
