"""`training.fsdp`: a run whose processes divide the networks among them (FSDP2), through accelerate on GPUs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator

from amsd.diffusion.policy import DTYPES, Policy
from amsd.diffusion.sharding import block_classes, mixed_precision, shard
from amsd.recipe import Recipe
from amsd.recipe.rules import require_even
from amsd.training import processes

USES_FSDP = "ACCELERATE_USE_FSDP"


def shares(recipe: Recipe) -> bool:
    """Whether this process divides the networks with others: one alone has nobody to divide them with."""
    return recipe.training.fsdp and dist.is_initialized()


def plugin(recipe: Recipe, cpu: bool) -> Any:
    """What accelerate has to know; None on the CPU, where it does not enter FSDP and PyTorch's own call stands in.

    Precision is as in one process. accelerate's own choice in bf16 would round all that the network is given, its time
    among it (993 becomes 992), and add the processes' gradients up in bf16.
    """
    if cpu or not recipe.training.fsdp:
        return None
    from accelerate import FullyShardedDataParallelPlugin

    return FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", reshard_after_forward=True,
        cpu_ram_efficient_loading=False, mixed_precision_policy=mixed_precision(DTYPES[recipe.model.precision]),
    )  # fmt: skip


def forget_launch_setting() -> None:
    """Take back what accelerate writes into the environment for a plugin: the next run here would meet it."""
    os.environ.pop(USES_FSDP, None)


@contextmanager
def divided(policy: Policy, recipe: Recipe, accelerator: Accelerator) -> Iterator[None]:
    """Divide the networks of a policy that lies on the CPU, and move the rest of it to the device.

    Inside the block processes that wait for an exchange of numbers help the others with their passes. Without
    `training.fsdp`, or with one process, nothing happens.

    Raises:
        UsageError: batches do not divide evenly.
    """
    if not shares(recipe):
        yield
        return
    require_even(recipe, processes.world_size())

    def divide(network: torch.nn.Module) -> None:
        if accelerator.is_fsdp2:
            from accelerate.utils import fsdp2_prepare_model

            # The plugin remembers the blocks of the network before, perhaps of another run of this Python process.
            accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = block_classes(network)
            fsdp2_prepare_model(accelerator, network)
        else:
            shard(network, policy.dtype)

    lockstep = policy.shard(divide)
    policy.to(accelerator.device)
    processes.before_exchanges(lockstep.meet)
    try:
        yield
    finally:
        processes.before_exchanges(None)
