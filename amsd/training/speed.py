"""How fast a run trains: pictures and operations per second, and the share of what the device can do."""

from __future__ import annotations

import time
from functools import cached_property

import torch

from amsd.diffusion.blueprint import forward_flops
from amsd.diffusion.policy import DTYPES
from amsd.recipe.cost import cost_per_trajectory
from amsd.training import processes
from amsd.training.problem import ControlProblem

_SIDE = {"cpu": 512, "cuda": 8192}
"""Side of the matrices whose product is timed: large enough that a device is busy, and gone in milliseconds."""
_TRIES = 5


class Speed:
    """Figures of each step, from the method's own count of network calls (`MethodSection.cost`).

    Operations are those of the denoiser; decoder and rewards come on top and are not counted.
    """

    def __init__(self, problem: ControlProblem) -> None:
        self._problem = problem
        self._recipe = problem.recipe
        self._cost = cost_per_trajectory(problem.recipe, processes.world_size())

    def values(self, collected: int, seconds: float) -> dict[str, float]:
        """What is logged of a step that took `seconds` and collected `collected` trajectories, over all processes.

        `performance/mfu` is the share of the rate of plain matrix products in the recipe's precision, measured on this
        device; it is left out where nothing can be measured.
        """
        count, seconds = self._recipe.optimizer.prompts_per_step, max(seconds, 1e-9)
        found = {"performance/images_per_second": count / seconds}
        if self._flops is None:
            return found
        calls = count * self._cost.in_steps + collected * self._recipe.method.passes * self._cost.in_collections
        found["performance/tflops"] = calls * self._flops / seconds / 1e12
        if self._rate is not None:
            found["performance/mfu"] = found["performance/tflops"] / self._rate / processes.world_size()
        return found

    @cached_property
    def _flops(self) -> float | None:
        """Operations of one forward pass for one picture; None of a network that is made without a configuration."""
        return forward_flops(self._problem.family)

    @cached_property
    def _rate(self) -> float | None:
        """TFLOP/s of this device at matrix products in the recipe's precision."""
        device = self._problem.device
        side = _SIDE.get(device.type)
        return None if side is None else matrix_rate(device, DTYPES[self._recipe.model.precision], side)


def matrix_rate(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """TFLOP/s of the fastest of a few products of two square matrices on a device."""
    left = torch.ones(side, side, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(_TRIES):
        _wait(device)
        start = time.perf_counter()
        left @ left
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best / 1e12


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
