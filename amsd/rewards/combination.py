"""Several rewards as one: a weighted sum that keeps every term visible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from amsd.diffusion.finite import require_finite_images
from amsd.errors import RunError, UsageError
from amsd.reading import is_shortage
from amsd.recipe import RewardTerm
from amsd.recipe.schema import CodeFile
from amsd.rewards.calling import NoGradient, RewardFailed, WrongScores, call
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
    groupwise: bool = False
    """Whether each call must get all samples of one prompt's group, and nothing else."""

    @property
    def factor(self) -> float:
        """What the raw score is multiplied by.

        Raises:
            RunError: the term is normalized and its scale is not measured yet.
        """
        if not self.normalize:
            return self.weight
        if self.scale is None:
            raise RunError(
                f"reward {self.reward.name!r} is normalized, but its standard deviation over the base model's samples "
                "was not measured"
            )
        return self.weight / self.scale


@dataclass(frozen=True)
class RewardValues:
    """Scores of a batch."""

    total: Tensor
    """(B,), float32: sum over terms of weight * score (/ base s.d. where normalized)."""
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
        return cls(
            [
                Term(resolve_reward(t.name, t.options, code), t.weight, t.normalize, groupwise=is_groupwise(t.options))
                for t in terms
            ]
        )

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> RewardValues:
        """Score images (B, 3, H, W), float in [0, 1], with gradient if the images have one.

        Where `groupwise` holds, these are all samples of one prompt's group. No term sees what another did to its
        input.

        Raises:
            NoGradient: images carry a gradient and a term loses it (it is a metric only).
            RewardFailed: a term raised, returned something else than one finite number per image, or its scale is
                missing; it is named.
            Diverged: an image is not finite.
        """
        require_finite_images(images, prompts)
        raw = {term.reward.name: call(term.reward, images, prompts) for term in self.terms}
        for name, scores in raw.items():
            _require_finite(scores, f"reward {name!r}", prompts)
        total = torch.stack([term.factor * raw[term.reward.name] for term in self.terms]).sum(0)
        _require_finite(total, "weighted sum of the rewards", prompts)
        return RewardValues(total, raw)

    @property
    def groupwise(self) -> bool:
        """Whether a term compares the samples of a group: then each call must get one whole group."""
        return any(term.groupwise for term in self.terms)

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each reward by name."""
        return {term.reward.name: term.weight for term in self.terms}

    @property
    def unmeasured(self) -> tuple[str, ...]:
        """Names of normalized terms that still need `scaled`."""
        return tuple(t.reward.name for t in self.terms if t.normalize and t.scale is None)

    def scaled(self, scales: Mapping[str, float]) -> WeightedReward:
        """The same sum with the base s.d. of its normalized terms filled in; other names are ignored.

        Raises:
            RunError: a s.d. is zero or not finite: this reward does not tell the base model's samples apart.
        """
        return WeightedReward([_with_scale(term, scales) for term in self.terms])

    def to(self, device: torch.device | str) -> Self:
        """Move the weights of every term."""
        for term in self.terms:
            term.reward.to(device)
        return self

    def rehearse(self, images: Tensor, prompts: Sequence[str], gradient: bool = True) -> None:
        """Call every term once as training will: what cannot work says so at once, not after hours.

        The scores (B,) of images (B, 3, H, W) in [0, 1], of one prompt where `groupwise` holds, are thrown away; the
        random generators of CPU and CUDA are left as they were. `gradient`: whether training differentiates them.

        Raises:
            UsageError: a term returns no scores, or none that can be differentiated; see `__call__`.
            RewardFailed: a term raised.
        """
        devices = [images.device] if images.device.type == "cuda" else []
        images = images.detach().requires_grad_(gradient)
        with torch.set_grad_enabled(gradient), torch.random.fork_rng(devices):
            for term in self.terms:
                try:
                    scores = call(term.reward, images, prompts)
                    if gradient:
                        _differentiate(scores, images, term.reward.name)
                except WrongScores as error:
                    raise UsageError(str(error)) from error

    def truncated(self, prompts: Sequence[str]) -> dict[str, int]:
        """How many of these prompts each reward cuts, by name."""
        return {term.reward.name: term.reward.truncated(prompts) for term in self.terms}


def is_groupwise(options: Mapping[str, Any]) -> bool:
    """Whether a scorer's options ask for whole groups."""
    return options.get("groupwise") is True


def _differentiate(scores: Tensor, images: Tensor, name: str) -> None:
    try:
        torch.autograd.grad(scores.sum(), images)
    except RuntimeError as error:
        if is_shortage(error):
            raise
        raise NoGradient(f"reward {name!r} cannot be differentiated with respect to the images: {error}") from error


def _require_finite(scores: Tensor, what: str, prompts: Sequence[str]) -> None:
    """Check scores (B,); not in a rehearsal, whose pictures are noise."""
    finite = scores.detach().isfinite()
    if not bool(finite.all()):
        rows = torch.nonzero(~finite).flatten().tolist()
        shown = "; ".join(dict.fromkeys(repr(prompts[row]) for row in rows[:3]))
        value = float(scores.detach()[rows[0]])
        raise RewardFailed(f"the {what} is {value} for {len(rows)} of {len(scores)} images (prompts: {shown})")


def _with_scale(term: Term, scales: Mapping[str, float]) -> Term:
    name = term.reward.name
    if not term.normalize or name not in scales:
        return term
    scale = float(scales[name])
    if not 0 < scale < float("inf"):
        raise RunError(
            f"reward {name!r}: its standard deviation over the base model's samples is {scale}, so it cannot be "
            "normalized. Remove normalize = true from this reward."
        )
    return replace(term, scale=scale)
