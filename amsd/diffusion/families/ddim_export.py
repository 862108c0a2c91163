"""The sampler that a user meets after training: a plain diffusers scheduler, in exports and in `amsd sample`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from amsd.diffusion.families.ddim_scheduler import SOCDDIMScheduler
from amsd.recipe import Schedule


def inference_scheduler(scheduler: Any, schedule: Schedule) -> DDIMScheduler:
    """Plain DDIM whose steps at `schedule.num_inference_steps` are those of fine-tuning, at any eta up to 1.

    `DDIMScheduler` steps by T // N, which meets the next grid point only where N divides the table. Elsewhere the
    returned scheduler carries a table (`trained_betas`) that is flat between the point where diffusers lands and the
    next grid point, so that both are the same noise level; the network sees the same timesteps. The last step ends
    without noise: `departures` says what that changes.

    Raises:
        UsageError: the model's scheduler has no affine step (see `SOCDDIMScheduler.for_recipe`).
    """
    own = SOCDDIMScheduler.for_recipe(scheduler, schedule.model_copy(update={"final_step": "noiseless"}))
    config = {key: value for key, value in own.config.items() if not key.startswith("_") and key != "final_step"}
    table = _flat_where_ddim_lands(own.alphas_cumprod.double(), own.timesteps, own.config.num_train_timesteps)
    if table is not None:
        previous = torch.cat([torch.ones(1, dtype=torch.float64), table[:-1]])
        config["trained_betas"] = (1 - table / previous).tolist()
        config["rescale_betas_zero_snr"] = False  # the table has been rescaled already
    return DDIMScheduler.from_config(config)


def departures(schedule: Schedule) -> Iterator[str]:
    """What an export samples otherwise than fine-tuning did, as sentences; nothing where both are equal."""
    if schedule.final_step == "midpoint":
        yield (
            'Fine-tuning stopped half way in its last step (schedule.final_step = "midpoint"), which leaves noise in '
            "the picture. Diffusers' DDIM ends without noise."
        )
    if schedule.eta > 1:
        yield (
            f"Fine-tuning sampled with eta = {schedule.eta:g}. Diffusers' DDIM takes eta up to 1; a larger eta can "
            "give NaN there."
        )


def _flat_where_ddim_lands(table: Tensor, timesteps: Tensor, total: int) -> Tensor | None:
    """The table (T,) in which `t_k - T // N` has the noise level of `t_{k+1}`; None where it has it already.

    Entries between two grid points change only, so the levels of the grid stay.
    """
    grid = timesteps.tolist()
    stride, result = total // len(grid), table.clone()
    for now, after in zip(grid, [*grid[1:], -1], strict=True):
        result[after + 1 : max(now - stride + 1, 0)] = 1.0 if after < 0 else table[after]
    return None if torch.equal(result, table) else result
