"""Methods that regress the prediction at re-noised endpoints: RAM and EAM (docs/method.md section 9)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field

from amsd.recipe.errors import Problem
from amsd.recipe.methods.base import (
    Cost,
    GroupedSection,
    StratifiedSection,
    TiltedSection,
    controlled_steps,
    sampled_rows,
)
from amsd.recipe.tables import Tables


class RegressionSection(StratifiedSection, TiltedSection):
    """What such methods have in common; a base class, not a method."""

    reward_multiplier: float = Field(default=100.0, ge=0)
    """Lambda: the target is the base distribution tilted by exp(lambda * reward). At 0 the policy stays at the base, up
    to the noise of its targets, so a run at 0 shows how much of a gain is due to the reward."""
    timesteps_per_trajectory: int = Field(default=4, ge=1)
    """Number K of noise levels to which each endpoint is noised again, stratified over the schedule."""
    sampler_decay: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the moving average of the policy that draws the endpoints; 0 is the newest policy."""

    def problems(self, recipe: Tables) -> Iterator[Problem]:
        """A role of guidance that does not exist, more path points than steps."""
        steps = recipe.schedule.num_inference_steps
        if recipe.guidance.guidance_in_adjoint_computation:
            yield Problem("guidance.guidance_in_adjoint_computation", f"{self.label} has no adjoint to guide", True,
                          "Remove it.")  # fmt: skip
        if self.timesteps_per_trajectory > steps:
            yield Problem("method.timesteps_per_trajectory", f"there are {steps} steps", self.timesteps_per_trajectory)
        yield from super().problems(recipe)

    def sampled_steps(self, recipe: Tables) -> int:
        """Steps of the sampler that an endpoint takes."""
        return recipe.schedule.num_inference_steps

    def _regression_cost(self, recipe: Tables, frozen: int) -> dict[str, float]:
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

    def cost(self, recipe: Tables, processes: int) -> Cost:
        """Sampling; the base's and the old policy's prediction and the loss at each path point."""
        return Cost(self._regression_cost(recipe, frozen=2))


class EAM(RegressionSection):
    """EAM (after arXiv 2605.11480): the adjoint in closed form; needs the gradient of the reward at endpoints only."""

    label: ClassVar[str] = "EAM"
    trainer: ClassVar[str] = "amsd.training.methods.eam:EAMTrainer"
    as_before: ClassVar[dict[str, Any]] = {"reward_at": "endpoint", "law": "model"}

    name: Literal["eam"] = "eam"
    endpoint_level: float = Field(default=0.7, gt=0, lt=1)
    """Noise level s_e at which the endpoint is taken. Near 0 the target is stiff, because data lie on a thin set. The
    higher the level, the longer the one step of the adjoint from the clean image to the endpoint."""
    reward_at: Literal["clean", "endpoint"] = "clean"
    """Where the reward is taken. `clean`: at the clean image that the sampler makes of the endpoint; the base's
    prediction carries the gradient back. `endpoint`: at the noisy endpoint itself; this costs less, has another tilt
    as its target, and does not train levels below the endpoint's."""

    law: Literal["sampler", "model"] = "sampler"
    """Which distribution is tilted. `sampler`: that of the images that the sampler draws in its steps, as in Adjoint
    Matching. `model`: that of infinitely many steps. Without noise (eta = 0) there is only the model's."""

    def adjoint_rows(self, recipe: Tables) -> int:
        """Where the gradient of a clean image is carried to noisy states."""
        if self.reward_at == "endpoint":
            return 0
        return sampled_rows(recipe) if recipe.guidance.guidance_in_control_computation else 1

    @property
    def steps_before_endpoint(self) -> int:
        """How many there are at least: without training below the endpoint all path points lie before it."""
        return 1 if self.reward_at == "clean" else self.timesteps_per_trajectory

    def problems(self, recipe: Tables) -> Iterator[Problem]:
        """No step left for the endpoint."""
        yield from super().problems(recipe)
        steps, count = recipe.schedule.num_inference_steps, self.timesteps_per_trajectory
        if self.steps_before_endpoint == steps:
            yield Problem("method.timesteps_per_trajectory", f"one of the {steps} steps is the endpoint's", count)
        elif self.reward_at == "clean" and count > (controlled_steps(recipe) or steps):
            yield Problem(
                "method.timesteps_per_trajectory",
                f"at most {controlled_steps(recipe)} steps of {steps} have noise "
                f"(final_step = {recipe.schedule.final_step!r})", count,
            )  # fmt: skip

    def advice(self, recipe: Tables) -> Iterator[Problem]:
        """A sampler whose clean images are no draws given the endpoint."""
        yield from super().advice(recipe)
        if self.reward_at == "clean" and recipe.schedule.eta < 1:
            yield Problem(
                "schedule.eta", "below 1 the clean image is not an independent draw given the endpoint, and training "
                "goes beyond the tilt", recipe.schedule.eta, 'Use 1.0, or method.reward_at = "endpoint".',
            )  # fmt: skip

    def endpoint(self, recipe: Tables) -> int:
        """Its step on Stable Diffusion's own path; on others this is an estimate."""
        levels = noise_levels(recipe)
        nearest = min(range(len(levels)), key=lambda k: abs(levels[k] - self.endpoint_level))
        return max(self.steps_before_endpoint, nearest)

    def sampled_steps(self, recipe: Tables) -> int:
        """All, or those to the endpoint's level."""
        return recipe.schedule.num_inference_steps if self.reward_at == "clean" else self.endpoint(recipe)

    def cost(self, recipe: Tables, processes: int) -> Cost:
        """Sampling; the base's score at the endpoint and the gradient carried there; base and loss at path points.

        At path points below the endpoint, as many as are expected, the gradient is carried there too.
        """
        parts, steps = self._regression_cost(recipe, frozen=1), recipe.schedule.num_inference_steps
        rows = 2 if recipe.guidance.guidance_in_control_computation else 1
        drawn = controlled_steps(recipe) or steps
        below = self.timesteps_per_trajectory * max(0, drawn - 1 - self.endpoint(recipe)) / drawn
        carried = (1 + below) * rows if self.reward_at == "clean" else 0
        return Cost({**parts, "adjoint": carried, "base": parts["base"] + rows})


def noise_levels(recipe: Tables) -> list[float]:
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
