"""The control problem that a recipe states: base process, policy, reward."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from amsd.diffusion.families.base import Family
from amsd.diffusion.families.decoding import DECODED_PIXELS
from amsd.diffusion.guidance import Conditioning, NetworkPredictor
from amsd.diffusion.policy import Policy
from amsd.diffusion.steps import AffineSteps
from amsd.errors import RunError
from amsd.recipe import Recipe
from amsd.rewards.combination import RewardValues
from amsd.training.chunks import REWARD, ChunkSize

RewardFunction = Callable[[Tensor, Sequence[str]], RewardValues]


@dataclass(frozen=True)
class ControlProblem:
    """Everything a method needs to compute with; nothing here knows of runs, files or trackers."""

    recipe: Recipe
    family: Family
    policy: Policy
    steps: AffineSteps
    reward: RewardFunction
    device: torch.device
    groupwise: bool = False
    """Whether the reward compares the samples of a group: then each call of it must get one whole group."""
    read: Callable[[Sequence[str]], Conditioning] | None = None
    """What encodes prompts where the text encoders are not on the device (`amsd.diffusion.texts`)."""

    @cached_property
    def pictures_at_once(self) -> ChunkSize:
        """How many pictures are decoded and scored at once: what the decoder has room for, and fewer where it has not.

        Where not even one fits, fewer trajectories around it may leave it room.
        """
        rows = max(1, DECODED_PIXELS // math.prod(self.family.size))
        return ChunkSize(rows, rows, REWARD, inner=True)

    @property
    def control_guidance(self) -> float:
        """Guidance scale of both predictions in the control."""
        guidance = self.recipe.guidance
        return guidance.guidance_scale if guidance.guidance_in_control_computation else 1.0

    @property
    def adjoint_guidance(self) -> float:
        """Guidance scale of the base drift in the adjoint."""
        guidance = self.recipe.guidance
        return guidance.guidance_scale if guidance.guidance_in_adjoint_computation else 1.0

    def finetuned(self, conditioning: Conditioning, guidance_scale: float) -> NetworkPredictor:
        """eps_theta under these conditions."""
        return NetworkPredictor(self.policy.finetuned, self.steps, conditioning, guidance_scale)

    def base(self, conditioning: Conditioning, guidance_scale: float) -> NetworkPredictor:
        """eps_0 under these conditions."""
        return NetworkPredictor(self.policy.base, self.steps, conditioning, guidance_scale)

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts together with the negative (by default the empty) one, which only guidance has."""
        if self.read is not None:
            return self.read(prompts)
        guidance = self.recipe.guidance
        negative = "" if guidance.guidance_scale == 1 else guidance.negative_prompt
        return Conditioning(self.family.encode(prompts), self.family.encode_negative(negative, len(prompts)))


def remedy(recipe: Recipe) -> str:
    """What of a recipe may be changed where a value of its training is not finite."""
    strength = "" if recipe.method.tilt is None else "method.reward_multiplier or "
    found = f"Lower {strength}optimizer.learning_rate"
    if recipe.guidance.guidance_in_adjoint_computation:
        found += ", turn guidance.guidance_in_adjoint_computation off"
    return found + ("." if recipe.model.precision == "fp32" else ', or set model.precision = "fp32".')


def require_finite(
    value: Tensor,
    what: str,
    step: int,
    phase: str,
    prompts: Sequence[str],
    hint: str,
    error: type[RunError] = RunError,
) -> None:
    """Stop the run if a row of `value` (B, ...) is not finite.

    Raises:
        RunError (or `error`): with the step, the phase and the prompts of the rows concerned.
    """
    bad = ~torch.isfinite(value.detach()).flatten(1).all(1) if value.ndim > 1 else ~torch.isfinite(value.detach())
    if bool(bad.any()):
        rows = torch.nonzero(bad).flatten().tolist()
        shown = "; ".join(repr(prompts[row]) for row in rows[:3])
        raise error(
            f"Step {step}, phase {phase}: the {what} is not finite for {len(rows)} of {len(bad)} rows "
            f"(prompts: {shown}). {hint}"
        )
