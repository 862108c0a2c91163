"""The runs that are compared: a recipe but for the method, all at the same number of network calls."""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amsd.files import write_json
from amsd.recipe import Recipe, load_recipe
from amsd.recipe.cost import forwards_per_step
from amsd.run_directory import RunDirectory

MODELS = {"unet": "shapes", "flow": "flow"}
"""Embedded model to the recipe that trains it."""
GRIDS: dict[str, dict[str, Any]] = {"unet": {}, "flow": {"schedule.shift_terminal": 0.2}}
"""Embedded model to its grid: that of the flow model was chosen before the recipe's own."""
METHODS: dict[str, dict[str, Any]] = {
    "am": {"method.name": "am"},
    "buffer-am": {"method.name": "buffer-am", "method.buffer.size": 32, "method.buffer.passes": 4},
    "eam": {"method.name": "eam"},
    "eam, law of the model": {"method.name": "eam", "method.law": "model"},
    "ram": {"method.name": "ram"},
    "draft, all steps": {"method.name": "draft", "method.backpropagated_steps": "all"},
    "draft, last step": {"method.name": "draft", "method.backpropagated_steps": 1},
    "refl": {"method.name": "refl"},
    "ddpo": {"method.name": "ddpo"},
}
"""Name to assignments. Keys that are not named have the values of the recipe or of the method."""
FACTORS = (1.0, 3.0)
"""Learning rates of the sweep, times the recipe's own."""
BUDGET = 12_000
"""Network forward-equivalents of a run, without evaluation, unless told otherwise: half of the recipe's own."""
REWARD = "shapes:right"
ALIGNMENT = "shapes:alignment"
DIVERSITY = "diversity/pixels"
METRICS = (REWARD, ALIGNMENT, DIVERSITY)
COMMON: dict[str, Any] = {
    "optimizer.warmup_steps": 2, "training.keep": 100, "tracking.trackers": "none",
    "evaluation.samples_per_prompt": 4, "evaluation.images": 0, "evaluation.diversity": ["pixels", "shapes:classifier"],
}  # fmt: skip


@dataclass(frozen=True)
class Length:
    """How long every run is."""

    budget: int = BUDGET
    """Network forward-equivalents."""
    checkpoints: int = 3
    """Evaluated steps, evenly spaced."""
    sampler_steps: int | None = None
    """Steps of the sampler; None: the recipe's own."""
    tilt: float | None = None
    """The reward multiplier; None: the recipe's own."""

    @property
    def name(self) -> str:
        """Of the folder of such runs."""
        steps = "" if self.sampler_steps is None else f"-{self.sampler_steps}-steps"
        tilt = "" if self.tilt is None else f"-lambda-{self.tilt:g}"
        return f"{self.budget}-calls-{self.checkpoints}-checkpoints{steps}{tilt}"


FINE = Length(budget=24_000, checkpoints=2, sampler_steps=50)
"""On-policy Adjoint Matching with as many steps as published; too long a run for every method."""
TILTS = (25.0, 100.0)
"""Reward multipliers beside the recipe's own 50, for a curve of reward against KL divergence."""
CURVE = ("am", "eam")
"""Its methods."""


@dataclass(frozen=True)
class Contender:
    """One run of the comparison."""

    model: str
    method: str
    factor: float
    """Of the recipe's learning rate."""
    seed: int

    @property
    def rate(self) -> float:
        """The learning rate."""
        return float(f"{load_recipe(MODELS[self.model]).optimizer.learning_rate * self.factor:.2g}")

    def folder(self, out: Path) -> Path:
        """Where it is trained; the folder is deleted once its result is written."""
        method = self.method.replace(", ", "-").replace(" ", "-")
        return out / self.model / method / f"rate-{self.factor:.2g}" / f"seed-{self.seed}"

    def result(self, out: Path) -> Path:
        """The file that says what it found; there is none before the run has ended."""
        return self.folder(out).with_suffix(".json")

    def timing(self, out: Path) -> Path:
        """The file that says what its network calls take."""
        return self.folder(out).parent.parent / "timing.json"

    def recipe(self, length: Length) -> Recipe:
        """As many steps as the budget allows, a multiple of the number of checkpoints."""
        values = {
            **COMMON, **GRIDS[self.model], **METHODS[self.method],
            "optimizer.learning_rate": self.rate, "training.seed": self.seed,
        }  # fmt: skip
        if length.sampler_steps is not None:
            values["schedule.num_inference_steps"] = length.sampler_steps
        if length.tilt is not None:
            values["method.reward_multiplier"] = length.tilt
        assignments = [f"{key}={json.dumps(value)}" for key, value in values.items()]
        each = forwards_per_step(load_recipe(MODELS[self.model], assignments))
        every = max(1, round(length.budget / each / length.checkpoints))
        lengths = [f"training.steps={every * length.checkpoints}", f"training.checkpoint_every={every}"]
        return load_recipe(MODELS[self.model], [*assignments, *lengths, f"training.validate_every={every}"])


def run(part: Contender, out: Path, length: Length) -> float:
    """Train one part to its end, from where it was stopped if it was, and write its result. Seconds that it took."""
    from amsd.experiment.train import train

    start, folder = time.monotonic(), part.folder(out)
    train(part.recipe(length), folder, resume=(folder / "recipe.toml").is_file())
    write_json(part.result(out), {"machine": machine(), "points": list(_points(folder))})
    shutil.rmtree(folder)
    return time.monotonic() - start


def time_calls(part: Contender, out: Path, length: Length) -> None:
    """Write the processor time of a network forward-equivalent of the method, from trainings of a step and of more.

    It is what a run takes on an idle machine, whatever else this one does.
    """
    from amsd.experiment.train import train

    took, recipe = [], part.recipe(length)
    cycle = 8 if recipe.method.passes > 1 else 4  # steps; of a buffer whole cycles of collecting and use
    for steps in (1, 1, 1 + cycle):  # the first for what a process does once
        short = {"steps": steps, "checkpoint_every": steps, "validate_every": 0}
        changes = {
            "training": recipe.training.model_copy(update=short),
            "evaluation": recipe.evaluation.model_copy(update={"every": 0}),
        }
        with tempfile.TemporaryDirectory() as folder:
            start = time.process_time()
            train(recipe.model_copy(update=changes), Path(folder) / "run")
            took.append(time.process_time() - start)
    seconds = (took[2] - took[1]) / cycle / forwards_per_step(recipe)
    write_json(part.timing(out), {"machine": machine(), "seconds_per_call": seconds})


def machine() -> str:
    """What the seconds of a run depend on: processor and number of cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def _points(folder: Path) -> Iterator[dict[str, Any]]:
    """What is kept of each checkpoint: work, seconds, KL divergence, and changes of the metrics by prompt."""
    each = forwards_per_step(load_recipe(folder / "recipe.toml"))
    base = _scores(next(RunDirectory(folder).base_evaluation.glob("*.json")))
    seconds = 0.0
    for line in map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()):
        seconds += line.get("seconds/total", 0.0)
        evaluation = folder / "checkpoints" / f"step-{line.get('step', 0):06d}" / "evaluation"
        if "validation/kl" in line and evaluation.is_dir():
            found = _scores(next(evaluation.glob("*.json")))
            changes = {name: [a - b for a, b in zip(found[name], base[name], strict=True)] for name in METRICS}
            yield {
                "step": line["step"], "forwards": each * line["step"], "seconds": seconds,
                "kl": line["validation/kl"], "changes": changes,
            }  # fmt: skip


def _scores(file: Path) -> dict[str, list[float]]:
    metrics = json.loads(file.read_text(encoding="utf-8"))["metrics"]
    return {name: metric["per_prompt"] for name, metric in metrics.items()}
