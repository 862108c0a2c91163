"""Clipped policy gradients on the Gaussian steps of the sampler: DDPO, Flow-GRPO (docs/method.md section 9)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from amsd.recipe.errors import Problem
from amsd.recipe.methods.base import (
    Buffer,
    BufferedSection,
    Cost,
    GroupedSection,
    StratifiedSection,
    controlled_steps,
    sampled_rows,
    unguided_roles,
    without_dropout,
)
from amsd.recipe.section import Positive
from amsd.recipe.tables import Tables


class PolicyBuffer(Buffer):
    """A buffer of few passes: the clipped ratio allows only small departures from the policy that sampled."""

    passes: int = Field(default=2, ge=1)
    """Passes of loss steps over one collection; in the first update the ratio is 1 and nothing is clipped."""


class DDPO(StratifiedSection, BufferedSection, GroupedSection):
    """DDPO (arXiv 2305.13301), on a flow path Flow-GRPO (arXiv 2505.05470); no gradient of the reward."""

    label: ClassVar[str] = "DDPO"
    trainer: ClassVar[str] = "amsd.training.methods.ddpo:DDPOTrainer"
    needs_reward_gradient: ClassVar[bool] = False
    scores_groups: ClassVar[bool] = True

    name: Literal["ddpo"] = "ddpo"
    buffer: PolicyBuffer = PolicyBuffer()
    clip_range: Positive = 0.2
    """The ratio of the step's densities counts only between 1 - c and 1 + c (PPO)."""
    advantage_scale: Literal["group", "batch", "none"] = "group"
    """Advantages are rewards minus the mean of their prompt's group, divided by the standard deviation within the
    `group` (GRPO), within all groups together (`batch`), or not at all."""
    kl_weight: float = Field(default=0.0, ge=0)
    """Weight of the KL divergence from the base's steps (Flow-GRPO's beta), in units of the advantage; above 0 the base
    is called once per loss item."""

    def problems(self, recipe: Tables) -> Iterator[Problem]:
        """No noise, too few steps, a role of guidance or a weight that does not exist."""
        steps = recipe.schedule.num_inference_steps
        if recipe.schedule.eta == 0:
            yield Problem(
                "schedule.eta", "must be above 0 for ddpo: without noise a step has no density to differentiate", 0.0,
                "Use 1.0; eta = 0 belongs in evaluation.eta.",
            )  # fmt: skip
        elif self.timesteps_per_trajectory > controlled_steps(recipe):
            yield Problem(
                "method.timesteps_per_trajectory",
                f"at most {controlled_steps(recipe)} steps of {steps} have noise "
                f"(final_step = {recipe.schedule.final_step!r})", self.timesteps_per_trajectory,
            )  # fmt: skip
        if self.buffer.importance_weighting:
            yield Problem("method.buffer.importance_weighting", "has no effect with ddpo: its clipped ratio "
                          "is an importance weight already", True, "Remove it.")  # fmt: skip
        if self.clip_range >= 1:
            yield Problem("method.clip_range", "must be below 1: a ratio is never negative", self.clip_range)
        yield from unguided_roles(
            recipe, f"{self.label} uses the density of the sampler's own steps, with their guidance"
        )
        yield from super().problems(recipe)

    def advice(self, recipe: Tables) -> Iterator[Problem]:
        """Prompt dropout, which has no meaning here."""
        yield from without_dropout(self, recipe)
        yield from super().advice(recipe)

    def cost(self, recipe: Tables, processes: int) -> Cost:
        """Sampling, shared by the passes; the loss; the base's predictions if the KL divergence is in it."""
        count, rows = self.timesteps_per_trajectory, sampled_rows(recipe)
        return Cost(
            {
                "sampling": recipe.schedule.num_inference_steps * rows / self.buffer.passes,
                "base": count * rows if self.kl_weight else 0,
                "loss": 3 * count * rows,
            }
        )
