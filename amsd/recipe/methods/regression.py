"""Methods that regress the prediction at re-noised endpoints: RAM and EAM (docs/method.md section 9)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from amsd.recipe.errors import Problem
from amsd.recipe.methods.base import Cost, GroupedSection, MethodSection, sampled_rows
from amsd.recipe.section import Positive

if TYPE_CHECKING:
    from amsd.recipe.tree import Recipe


class RegressionSection(MethodSection):
    """What such methods have in common; a base class, not a method."""

    reward_multiplier: Positive = 100.0
    """Lambda: the target is the base distribution tilted by exp(lambda * reward)."""
    timesteps_per_trajectory: int = Field(default=4, ge=1)
    """Number K of noise levels to which each endpoint is noised again, stratified over the schedule."""
    sampler_decay: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the moving average of the policy that draws the endpoints; 0 is the newest policy."""

    @property
    def items_per_trajectory(self) -> int:
        """K."""
        return self.timesteps_per_trajectory

    @property
    def tilt(self) -> float:
        """The reward multiplier."""
        return self.reward_multiplier

    def problems(self, recipe: Recipe) -> Iterator[Problem]:
        """A role of guidance that does not exist, more path points than steps."""
        steps = recipe.schedule.num_inference_steps
        if recipe.guidance.guidance_in_adjoint_computation:
            yield Problem("guidance.guidance_in_adjoint_computation", f"{self.label} has no adjoint to guide", True,
                          "Remove it.")  # fmt: skip
        if self.timesteps_per_trajectory > steps:
            yield Problem("method.timesteps_per_trajectory", f"there are {steps} steps", self.timesteps_per_trajectory)
        yield from super().problems(recipe)

    def sampled_steps(self, recipe: Recipe) -> int:
        """Steps of the sampler that an endpoint takes."""
        return recipe.schedule.num_inference_steps

    def _regression_cost(self, recipe: Recipe, frozen: int) -> dict[str, float]:
        """Sampling, `frozen` predictions without gradient per path point, and the loss."""
        count, in_control = self.timesteps_per_trajectory, 2 if recipe.guidance.guidance_in_control_computation else 1
        return {
            "sampling": self.sampled_steps(recipe) * sampled_rows(recipe),
            "base": frozen * count * in_control,
            "loss": 3 * count * in_control,
        }


class RAM(GroupedSection, RegressionSection):
    """RAM (arXiv 2605.10759): advantages within groups of samples of one prompt; no gradient of the reward."""

    label: ClassVar[str] = "RAM"
    trainer: ClassVar[str] = "amsd.training.methods.ram:RAMTrainer"
    needs_reward_gradient: ClassVar[bool] = False
    scores_groups: ClassVar[bool] = True

    name: Literal["ram"] = "ram"

    def cost(self, recipe: Recipe, processes: int) -> Cost:
        """Sampling; the base's and the old policy's prediction and the loss at each path point."""
        return Cost(self._regression_cost(recipe, frozen=2))


class EAM(RegressionSection):
    """EAM (after arXiv 2605.11480): the adjoint in closed form; needs the gradient of the reward at endpoints only."""

    label: ClassVar[str] = "EAM"
    trainer: ClassVar[str] = "amsd.training.methods.eam:EAMTrainer"

    name: Literal["eam"] = "eam"
    endpoint_level: float = Field(default=0.5, gt=0, lt=1)
    """Noise level s_e at which the endpoint is taken. Data lie on a thin set, so near 0 the target is stiff; above it
    the reward of noisy endpoints stands in for that of clean ones. Levels below get no training."""

    def problems(self, recipe: Recipe) -> Iterator[Problem]:
        """No step left for the endpoint."""
        yield from super().problems(recipe)
        steps = recipe.schedule.num_inference_steps
        if self.timesteps_per_trajectory == steps:
            yield Problem("method.timesteps_per_trajectory", f"one of the {steps} steps is the endpoint's",
                          self.timesteps_per_trajectory)  # fmt: skip

    def sampled_steps(self, recipe: Recipe) -> int:
        """Those to the endpoint's level on Stable Diffusion's own path; on others this is an estimate."""
        levels = noise_levels(recipe)
        nearest = min(range(len(levels)), key=lambda k: abs(levels[k] - self.endpoint_level))
        return max(self.timesteps_per_trajectory, nearest)

    def cost(self, recipe: Recipe, processes: int) -> Cost:
        """Sampling, the base's score at the endpoint, its prediction (for the KL) and the loss at each path point."""
        parts = self._regression_cost(recipe, frozen=1)
        score = 2 if recipe.guidance.guidance_in_control_computation else 1
        return Cost({**parts, "base": parts["base"] + score})


def noise_levels(recipe: Recipe) -> list[float]:
    """s_k at each step of the trailing grid, from the betas of the recipe or of Stable Diffusion (scaled linear)."""
    first, last = recipe.schedule.beta_start or 0.00085, recipe.schedule.beta_end or 0.012
    signal, product = [], 1.0
    for index in range(_TABLE):
        product *= 1 - (first**0.5 + (last**0.5 - first**0.5) * index / (_TABLE - 1)) ** 2
        signal.append(product)
    count = recipe.schedule.num_inference_steps
    grid = [round(_TABLE * (1 - k / count)) - 1 for k in range(count)]
    return [(1 - signal[max(t, 0)]) ** 0.5 for t in grid]


_TABLE = 1000
