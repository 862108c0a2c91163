"""The sampler that a user meets after training: a plain diffusers scheduler, in exports and in `amsd sample`."""

from __future__ import annotations

from typing import Any

from diffusers import DDIMScheduler

from amsd.diffusion.scheduler import SOCDDIMScheduler
from amsd.recipe import Schedule


def inference_scheduler(scheduler: Any, schedule: Schedule) -> DDIMScheduler:
    """Plain DDIM with the recipe's noise table and spacing, ending without noise.

    It equals the fine-tuning sampler except that `final_step = "midpoint"`, which leaves noise in the image and which
    diffusers cannot express, becomes noiseless.
    """
    own = SOCDDIMScheduler.for_recipe(scheduler, schedule)
    config = {key: value for key, value in own.config.items() if not key.startswith("_")}
    return DDIMScheduler.from_config(config)
