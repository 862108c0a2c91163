"""Methods that back-propagate the reward through the sampler: DRaFT and ReFL (docs/method.md section 9)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from amsd.recipe.errors import Problem
from amsd.recipe.methods.base import Cost, MethodSection, sampled_rows, unguided_roles, without_dropout
from amsd.recipe.section import Fraction, count_or
from amsd.recipe.tables import Tables


class BackpropagationSection(MethodSection):
    """What such methods have in common; a base class, not a method."""

    def problems(self, recipe: Tables) -> Iterator[Problem]:
        """Roles of guidance that do not exist."""
        yield from unguided_roles(recipe, f"{self.label} differentiates the sampler itself, with its guidance")
        yield from super().problems(recipe)

    def advice(self, recipe: Tables) -> Iterator[Problem]:
        """Prompt dropout, which has no meaning here."""
        yield from without_dropout(self, recipe)
        yield from super().advice(recipe)


class DRaFT(BackpropagationSection):
    """DRaFT-K (arXiv 2309.17400): the reward's gradient through the last K steps of the sampler."""

    label: ClassVar[str] = "DRaFT"
    trainer: ClassVar[str] = "amsd.training.methods.draft:DRaFTTrainer"

    name: Literal["draft"] = "draft"
    backpropagated_steps: Annotated[int | Literal["all"], count_or("all")] = 1
    """Last steps K of the sampler that the gradient goes through: 1 is the cheapest and sees only details that the last
    step decides, "all" also sees the layout. With `training.gradient_checkpointing` memory holds the activations of one
    step at a time, whatever K is."""

    @property
    def short(self) -> str:
        """With K."""
        return f"{self.name}-{self.backpropagated_steps}"

    def steps(self, total: int) -> int:
        """K out of `total` steps."""
        return total if self.backpropagated_steps == "all" else self.backpropagated_steps

    def problems(self, recipe: Tables) -> Iterator[Problem]:
        """More steps than there are."""
        yield from super().problems(recipe)
        total = recipe.schedule.num_inference_steps
        if self.steps(total) > total:
            yield Problem("method.backpropagated_steps", f"there are {total} steps", self.backpropagated_steps,
                          'Use "all" for every step.')  # fmt: skip

    def cost(self, recipe: Tables, processes: int) -> Cost:
        """The first N - K steps without gradients, the last K with (three)."""
        total, rows = recipe.schedule.num_inference_steps, sampled_rows(recipe)
        last = self.steps(total)
        return Cost({"sampling": (total - last) * rows, "loss": 3 * last * rows})


class ReFL(BackpropagationSection):
    """ReFL (ImageReward, arXiv 2304.05977): the reward of the clean image predicted at one random late step."""

    label: ClassVar[str] = "ReFL"
    trainer: ClassVar[str] = "amsd.training.methods.refl:ReFLTrainer"

    name: Literal["refl"] = "refl"
    late_share: Fraction = Field(default=0.25, gt=0)
    """The step is drawn from this last share of the schedule (the paper: the last 10 of 40), from one step at least."""

    def late_steps(self, total: int) -> range:
        """Steps that the prediction is drawn from."""
        return range(total - max(1, math.floor(self.late_share * total + 1e-9)), total)

    def cost(self, recipe: Tables, processes: int) -> Cost:
        """Sampling as far as the drawn step, on average, and one prediction with gradient."""
        late, rows = self.late_steps(recipe.schedule.num_inference_steps), sampled_rows(recipe)
        return Cost({"sampling": rows * sum(late) / len(late), "loss": 3 * rows})
