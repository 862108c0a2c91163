"""How the time of an update grows with the batch, the inference steps and the number of prompts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
import workbench

from amsd.diffusion.loading import load_family
from amsd.recipe import load_recipe

BATCHES, STEPS, PROMPTS = (2, 4, 8, 16), (5, 10, 20, 40), (50, 500, 5000)


def grow(rounds: int = 3) -> dict[str, dict[str, float]]:
    """Processor seconds per update; one thing grows at a time from batch 4, N = 10, 50 prompts."""
    return {
        "batch": {str(batch): _update(rounds, batch=batch) for batch in BATCHES},
        "inference steps": {str(steps): _update(rounds, steps=steps) for steps in STEPS},
        "prompts": {str(count): _update(rounds, prompts=count) for count in PROMPTS},
    }


def _update(rounds: int, batch: int = 4, steps: int = 10, prompts: int = 50) -> float:
    recipe = load_recipe(
        "shapes",
        [f"optimizer.prompts_per_step={batch}", f"optimizer.micro_batch={batch}", "training.steps=1000",
         "training.checkpoint_every=1000", f"schedule.num_inference_steps={steps}", "evaluation.every=0",
         "method.timesteps_per_trajectory=2"],
    )  # fmt: skip
    problem, accelerator = workbench.set_up(recipe, load_family(recipe.model).pipeline, torch.device("cpu"))
    texts = [f"{workbench.PROMPTS[number % 2]} {number}" for number in range(prompts)]
    seconds = []
    with workbench.stepping(problem, accelerator, texts) as step:
        step()
        for _ in range(rounds):
            start = time.process_time()
            step()
            seconds.append(time.process_time() - start)
    return median(seconds)


def exponent(values: dict[str, float]) -> float:
    """Slope of log seconds against log size over the whole range: 1 is linear."""
    import math

    sizes: Sequence[Any] = sorted(values, key=float)
    first, last = sizes[0], sizes[-1]
    return math.log(values[last] / values[first]) / math.log(float(last) / float(first))
