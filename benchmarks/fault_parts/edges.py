"""Numbers at the edges of what a recipe accepts: the training of two steps works, or says why it cannot."""

from __future__ import annotations

import random
import resource
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from amsd.errors import UsageError
from amsd.recipe import Recipe, load_recipe
from benchmarks.fault_parts.children import amsd
from benchmarks.fault_parts.runs import Scene
from benchmarks.fault_parts.tally import Attempt

VALUES = ("1000000000000000000", "1000000", "1", "0", "5e-324", "1e308", "1e-30")
SHORT = ("training.steps=2", "training.checkpoint_every=2", "evaluation.prompts=1", "evaluation.samples_per_prompt=2")
#: What makes a key count.
WITH = {
    "method.buffer": "method.name=buffer-am", "model.lora": "model.parameterization=lora",
    "method.smoothing.samples": "method.smoothing.noise_std=0.1",
}  # fmt: skip
#: Keys whose large values are long trainings, not large ones.
LONG = ("training.steps", "schedule.num_inference_steps", "optimizer.prompts_per_step", "method.smoothing.samples",
        "evaluation.num_inference_steps", "evaluation.samples_per_prompt")  # fmt: skip
#: Bytes that a training may take beyond what this process has, and its seconds of processor time.
MEMORY, SECONDS = 6 * 2**30, 100


def try_number(scene: Scene, number: int, draw: random.Random) -> Attempt:
    """The `number`-th of the settings that a recipe accepts, in an order of its own."""
    settings = _accepted(scene.recipe)
    chosen = settings[number * 7919 % len(settings)]
    run = scene.folder / f"edge-{number}"
    options = [part for setting in chosen for part in ("--set", setting)]
    child = amsd(
        ["train", str(scene.recipe), "--output", str(run), *options], run.with_suffix(".said"), before=_bounded
    )
    code = child.wait()
    shutil.rmtree(run, ignore_errors=True)
    fault = "" if code in (0, 1, 2) else f"ended with {code}"
    return Attempt(f"{chosen[-1]}: {fault}" if fault else "", child.said)


@cache
def _accepted(recipe: Path) -> list[tuple[str, ...]]:
    return list(_settings(recipe))


def _settings(recipe: Path) -> Iterator[tuple[str, ...]]:
    from tests.fuzz.inputs import keys_of

    for key in keys_of(Recipe):
        more = tuple(setting for start, setting in WITH.items() if key.startswith(start))
        for value in VALUES:
            if key.startswith(("tracking", "code")) or (key in LONG and float(value) >= 1000):
                continue
            settings = (*SHORT, *more, f"{key}={value}")
            try:
                load_recipe(recipe, settings)
            except UsageError:
                continue
            yield settings


def _bounded() -> None:
    own = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (own + MEMORY, own + MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
