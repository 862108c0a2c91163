"""Optimizer, learning-rate schedule and weight average, as a recipe describes them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import nn

from amsd import recipe as recipes
from amsd.diffusion.sharding import placed
from amsd.packages import require_bitsandbytes


def build_optimizer(parameters: Iterable[nn.Parameter], settings: recipes.Optimizer) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter, "Decoupled Weight Decay Regularization"), its moments in 32 or 8 bits.

    8 bits: Dettmers et al., "8-bit Optimizers via Block-wise Quantization"; tensors below 4,096 numbers keep 32.
    """
    trained = list(parameters)
    if settings.name == "adamw-8bit":
        require_bitsandbytes("optimizer.name")
        optimizers: Any = import_module("bitsandbytes.optim")
        small: torch.optim.Optimizer = optimizers.AdamW8bit(
            trained, lr=settings.learning_rate, betas=settings.betas, eps=settings.epsilon,
            weight_decay=settings.weight_decay,
        )  # fmt: skip
        return small
    return torch.optim.AdamW(
        trained,
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        fused=all(parameter.is_cuda for parameter in trained) or None,
    )


def learning_rate(step: int, steps: int, settings: recipes.Optimizer) -> float:
    """Learning rate of optimizer step `step` (from 1) of a run of `steps`: linear warm-up, then the schedule.

    A pure function of the step, so a resumed run needs no scheduler state.
    """
    warmup = settings.warmup_steps
    if step <= warmup:
        return settings.learning_rate * step / (warmup + 1)
    progress = (step - warmup - 1) / max(1, steps - warmup)
    match settings.schedule:
        case "linear":
            factor = 1 - progress
        case "cosine":
            factor = 0.5 * (1 + math.cos(math.pi * progress))
        case "step":
            factor = settings.step_gamma ** ((step - warmup - 1) // settings.step_size)
        case "constant":
            factor = 1.0
    return settings.learning_rate * factor


class WeightAverage:
    """Exponential moving average of the trained parameters (diffusers' `EMAModel`), swapped in for evaluation."""

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        from diffusers.training_utils import EMAModel

        self.parameters = list(parameters)
        self._ema = EMAModel(self.parameters, decay=decay)

    def update(self) -> None:
        """Take in the parameters after an optimizer step."""
        self._ema.step(self.parameters)

    @property
    def shadow(self) -> list[torch.Tensor]:
        """The averaged values, one per parameter."""
        values: list[torch.Tensor] = self._ema.shadow_params
        return values

    @property
    def updates(self) -> int:
        """How many updates the average has seen."""
        return int(self._ema.optimization_step)

    def restore(self, shadow: Iterable[torch.Tensor], updates: int) -> None:
        """Continue from saved values."""
        for target, value in zip(self.shadow, shadow, strict=True):
            target.copy_(placed(value, target))
        self._ema.optimization_step = updates

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The parameters hold the average inside the block."""
        self._ema.store(self.parameters)
        self._ema.copy_to(self.parameters)
        try:
            yield
        finally:
            self._ema.restore(self.parameters)
