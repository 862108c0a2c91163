"""`Method`: what a method of fine-tuning says of itself; the fit loop (`SOCTrainer`) asks nothing else of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Generic

import torch
from torch import Tensor, nn

from amsd.diffusion.steps import AffineSteps
from amsd.recipe import Recipe
from amsd.training.clock import PhaseClock
from amsd.training.events import Notice
from amsd.training.experience import E, ItemLosses, Sample
from amsd.training.problem import ControlProblem
from amsd.training.remarks import clamped_noise, stiff_step
from amsd.training.sources import Batch, ExperienceSource, OnPolicy


class Method(ABC, Generic[E]):
    """Abstract in what a trajectory leaves behind, its loss, and what is logged of it (docs/extending.md)."""

    experience_class: type[E]
    """What `compute_experience` returns."""
    source_class: ClassVar[type[ExperienceSource[Any]]] = OnPolicy
    only_losses = False
    """True while losses are computed a second time, for their gradient alone."""
    masked_hint = ""
    """What a notice advises where every item of a step has weight 0."""
    flat_reason = "the reward does not change with the images (or all of their pixels are clamped: clamped_share)"
    """Why a step may have no gradient."""

    problem: ControlProblem
    recipe: Recipe
    source: ExperienceSource[E]
    clock: PhaseClock

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trained parameters."""
        return list(self.problem.policy.trainable.values())

    @abstractmethod
    def compute_experience(self, samples: Sequence[Sample], passes: int, step: int) -> E:
        """Experience of trajectories that are collected at once, under the current policy.

        A sample's experience depends on the sample and the policy alone, not on the others. Nothing is exchanged
        between processes in here, for each may collect in as many parts as it has room for.
        """

    @abstractmethod
    def losses(self, experience: E, rows: Tensor, pass_index: int) -> ItemLosses:
        """Losses of some trajectories, the `rows` (R,) of an experience, in one of its passes.

        R times the section's `items_per_trajectory` losses, row by row, differentiable in the trained parameters.
        """

    @abstractmethod
    def step_values(self, batch: Batch[E], items: ItemLosses) -> dict[str, float]:
        """What is logged of a step: flat names to values over the global batch.

        `items` are those of the global batch, `batch` is this process's part; every process is here, so that values
        can be gathered (`amsd.training.record`).
        """

    def complete(self, experience: E) -> E:
        """The experience of a whole collection, once it is there; processes may exchange numbers in here."""
        return experience

    @property
    def weighs_whole_batch(self) -> bool:
        """Whether `weights` needs the items of the global batch: then no gradient can be taken before."""
        return False

    def weights(self, items: ItemLosses) -> Tensor:
        """Weight of each loss (M,) of a chunk, or of the global batch; changes nothing."""
        return torch.ones(len(items.loss), dtype=torch.float64)

    def after_step(self, items: ItemLosses) -> None:
        """Told after each update and its logged values: the items of the global batch, all of them finite."""

    @classmethod
    def warnings(cls, recipe: Recipe, steps: AffineSteps) -> Iterator[Notice]:
        """What a user should know of the recipe's sampler; a check says it too, without a weight."""
        yield from clamped_noise(steps, recipe.schedule.eta)
        yield from stiff_step(steps, "the loss" if cls.weighs_by_control(recipe) else "the KL divergence")

    @classmethod
    def weighs_by_control(cls, recipe: Recipe) -> bool:
        """Whether a loss grows with the control scale c_k of its step, so that one step can dominate the others."""
        return False

    def remarks(self) -> Iterator[Notice]:
        """What a user should know of the problem before the first step."""
        yield from self.warnings(self.problem.recipe, self.problem.steps)

    def state(self) -> dict[str, Any]:
        """What the method must not forget, as JSON; the names are its own (`threshold`)."""
        return {}

    def state_tensors(self) -> dict[str, Tensor]:
        """What the method must not forget, as tensors."""
        return {}

    def restore(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `state` and `state_tensors` returned."""
