"""Rewards of terminal latents, with their gradient through the decoder, and without."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from amsd.diffusion.families.base import DECODED_PIXELS, image_size
from amsd.diffusion.noise import normal
from amsd.matching import smooth
from amsd.recipe import Smoothing
from amsd.training.experience import Sample
from amsd.training.problem import ControlProblem, require_finite

_PLAIN = Smoothing()


@dataclass(frozen=True)
class TerminalReward:
    """Reward of terminal latents and its gradient."""

    rewards: Tensor
    """(B,), on the CPU."""
    terms: Mapping[str, Tensor]
    """Each term before weighting, (B,), on the CPU."""
    gradient: Tensor
    """d r / d x_N, shape of the latents."""
    clamped_share: Tensor
    """(B,), on the CPU."""


def reward_gradient(
    problem: ControlProblem, latents: Tensor, samples: Sequence[Sample], smoothing: Smoothing = _PLAIN
) -> TerminalReward:
    """Gradient of the reward through the decoder in float32, smoothed if asked for; latents (B, ...)."""
    draws = []
    for draw in range(smoothing.samples):
        perturbed = latents
        if smoothing.noise_std:
            keys = [(*sample.key, "smoothing", draw) for sample in samples]
            noise = normal(keys, latents.shape[1:], latents.device, latents.dtype)
            perturbed = latents + smoothing.noise_std * noise
        draws.append(_gradient_at(problem, perturbed, [sample.prompt for sample in samples]))
    return TerminalReward(
        rewards=torch.stack([draw.rewards for draw in draws]).mean(0),
        terms={name: torch.stack([draw.terms[name] for draw in draws]).mean(0) for name in draws[0].terms},
        gradient=smooth(torch.stack([draw.gradient for draw in draws]), smoothing.clip_quantile).gradient,
        clamped_share=torch.stack([draw.clamped_share for draw in draws]).mean(0),
    )


def _gradient_at(problem: ControlProblem, latents: Tensor, prompts: Sequence[str]) -> TerminalReward:
    parts = []
    rows = max(1, DECODED_PIXELS // math.prod(image_size(problem.family)))
    for start in range(0, len(latents), rows):
        x = latents[start : start + rows].detach().requires_grad_(True)
        with torch.enable_grad():
            images = problem.family.decode(x)
            values = problem.reward(images.clamp(0, 1), prompts[start : start + rows])
        (gradient,) = torch.autograd.grad(values.total.sum(), x)
        terms = {name: value.detach().cpu() for name, value in values.terms.items()}
        parts.append(TerminalReward(values.total.detach().cpu(), terms, gradient, _outside(images).cpu()))
    return TerminalReward(
        torch.cat([part.rewards for part in parts]),
        {name: torch.cat([part.terms[name] for part in parts]) for name in parts[0].terms},
        torch.cat([part.gradient for part in parts]),
        torch.cat([part.clamped_share for part in parts]),
    )


@dataclass(frozen=True)
class Scores:
    """Rewards of latents without their gradient."""

    rewards: Tensor
    """(B,), on the CPU."""
    terms: Mapping[str, Tensor]
    """Each term before weighting, (B,), on the CPU."""
    clamped_share: Tensor
    """Share of the decoded pixel values outside [0, 1], (B,), on the CPU."""


@torch.no_grad()
def scores(problem: ControlProblem, latents: Tensor, prompts: Sequence[str]) -> Scores:
    """Rewards of the decoded latents (B, ...); any function of images will do, also one without a gradient."""
    parts = []
    rows = max(1, DECODED_PIXELS // math.prod(image_size(problem.family)))
    for start in range(0, len(latents), rows):
        images = problem.family.decode(latents[start : start + rows])
        values = problem.reward(images.clamp(0, 1), prompts[start : start + rows])
        terms = {name: value.detach().cpu() for name, value in values.terms.items()}
        parts.append(Scores(values.total.detach().cpu(), terms, _outside(images).cpu()))
    return Scores(
        torch.cat([part.rewards for part in parts]),
        {name: torch.cat([part.terms[name] for part in parts]) for name in parts[0].terms},
        torch.cat([part.clamped_share for part in parts]),
    )


def _outside(images: Tensor) -> Tensor:
    return ((images.detach() < 0) | (images.detach() > 1)).flatten(1).float().mean(1)


def require_finite_reward(terminal: TerminalReward, step: int, prompts: Sequence[str]) -> None:
    """Stop the run if a reward or its gradient is not finite.

    Raises:
        RunError: with the step and the prompts of the rows concerned.
    """
    named = {f"reward {name!r}": scores for name, scores in terminal.terms.items()}
    named["weighted reward"] = terminal.rewards
    named[f"gradient of the reward {' + '.join(map(repr, terminal.terms))}"] = terminal.gradient
    hint = "Either the reward fails on these images, or the model has diverged: then lower optimizer.learning_rate."
    for what, value in named.items():
        require_finite(value, what, step, "reward gradient", prompts, hint)
