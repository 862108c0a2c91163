"""Several rewards as one: a weighted sum that keeps every term visible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from amsd.diffusion.finite import require_finite_images
from amsd.errors import RunError, UsageError
from amsd.recipe import RewardTerm
from amsd.recipe.schema import CodeFile
from amsd.rewards.protocol import Reward
from amsd.rewards.table import resolve_reward


@dataclass(frozen=True)
class Term:
    """One reward of the sum."""

    reward: Reward
    weight: float = 1.0
    normalize: bool = False
    """Divide by the standard deviation of this reward over the base model's samples."""
    scale: float | None = None
    """That standard deviation, once it was measured."""

    @property
    def factor(self) -> float:
        """What the raw score is multiplied by.

        Raises:
            RunError: the term is normalised and its scale is not measured yet.
        """
        if not self.normalize:
            return self.weight
        if self.scale is None:
            raise RunError(f"reward {self.reward.name!r} is normalised, but its base s.d. was not measured yet")
        return self.weight / self.scale


@dataclass(frozen=True)
class RewardValues:
    """Scores of a batch."""

    total: Tensor
    """(B,), float32: sum over terms of weight * score (/ base s.d. where normalised)."""
    terms: dict[str, Tensor]
    """(B,) each, float32: raw scores by name, without weight and scale."""


class WeightedReward:
    """Weighted sum of rewards; `recipe.reward` as one callable."""

    def __init__(self, terms: Sequence[Term]) -> None:
        names = [term.reward.name for term in terms]
        if not terms or len(set(names)) < len(names):
            raise ValueError(f"expected one reward or more, each once, but got {names}")
        self.terms = tuple(terms)

    @classmethod
    def from_recipe(cls, terms: Sequence[RewardTerm], code: Mapping[str, CodeFile] | None = None) -> WeightedReward:
        """Load the rewards of a recipe (`recipe.reward`, `recipe.code`).

        Raises:
            UsageError: a name or an option is unknown.
        """
        return cls([Term(resolve_reward(t.name, t.options, code), t.weight, t.normalize) for t in terms])

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> RewardValues:
        """Score images (B, 3, H, W), float in [0, 1], with gradient if the images have one.

        Raises:
            UsageError: images carry a gradient and a term loses it (it is a metric only).
            RunError: a term returns another shape than (B,), or its scale is missing.
            Diverged: an image is not finite.
        """
        require_finite_images(images, prompts)
        raw = {term.reward.name: _score(term.reward, images, prompts) for term in self.terms}
        total = torch.stack([term.factor * raw[term.reward.name] for term in self.terms]).sum(0)
        return RewardValues(total, raw)

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each reward by name."""
        return {term.reward.name: term.weight for term in self.terms}

    @property
    def unmeasured(self) -> tuple[str, ...]:
        """Names of normalised terms that still need `scaled`."""
        return tuple(t.reward.name for t in self.terms if t.normalize and t.scale is None)

    def scaled(self, scales: Mapping[str, float]) -> WeightedReward:
        """The same sum with the base s.d. of its normalised terms filled in; other names are ignored.

        Raises:
            RunError: a s.d. is zero or not finite: this reward does not tell the base model's samples apart.
        """
        return WeightedReward([_with_scale(term, scales) for term in self.terms])

    def to(self, device: torch.device | str) -> Self:
        """Move the weights of every term."""
        for term in self.terms:
            term.reward.to(device)
        return self

    def rehearse(self, images: Tensor, prompts: Sequence[str]) -> None:
        """Call every term once with gradient, as training will: what cannot work says so at once, not after hours.

        The scores (B,) of images (B, 3, H, W) in [0, 1] are thrown away; the random generators of CPU and CUDA are left
        as they were.

        Raises:
            UsageError, RunError: see `__call__`; and whatever a reward itself raises.
        """
        devices = [images.device] if images.device.type == "cuda" else []
        images = images.detach().requires_grad_(True)
        with torch.enable_grad(), torch.random.fork_rng(devices):
            for term in self.terms:
                torch.autograd.grad(_score(term.reward, images, prompts).sum(), images)

    def truncated(self, prompts: Sequence[str]) -> dict[str, int]:
        """How many of these prompts each reward cuts, by name."""
        return {term.reward.name: term.reward.truncated(prompts) for term in self.terms}


def _score(reward: Reward, images: Tensor, prompts: Sequence[str]) -> Tensor:
    scores = reward(images, prompts)
    if scores.shape != (len(images),):
        raise RunError(f"reward {reward.name!r} returned shape {tuple(scores.shape)} for {len(images)} images")
    if torch.is_grad_enabled() and images.requires_grad and not scores.requires_grad:
        raise UsageError(
            f"reward {reward.name!r} has no gradient, so nothing can be trained on it. "
            "To watch it, name it in evaluation.metrics instead."
        )
    return scores.float()


def _with_scale(term: Term, scales: Mapping[str, float]) -> Term:
    name = term.reward.name
    if not term.normalize or name not in scales:
        return term
    scale = float(scales[name])
    if not 0 < scale < float("inf"):
        raise RunError(f"reward {name!r} has s.d. {scale} over the base model's samples; it cannot be normalised by it")
    return replace(term, scale=scale)
