"""Rewards of terminal latents, with their gradient through the decoder, and without."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from amsd.diffusion.noise import normal
from amsd.matching import smooth
from amsd.reading import is_shortage
from amsd.recipe import Smoothing
from amsd.rewards.calling import RewardFailed
from amsd.rewards.combination import RewardValues
from amsd.rows import Rows
from amsd.training import processes
from amsd.training.chunks import in_chunks
from amsd.training.experience import Sample
from amsd.training.problem import ControlProblem, require_finite

_PLAIN = Smoothing()


@dataclass(frozen=True)
class Scores(Rows):
    """Rewards of latents."""

    rewards: Tensor
    """(B,), on the CPU."""
    terms: Mapping[str, Tensor]
    """Each term before weighting, (B,), on the CPU."""
    clamped_share: Tensor
    """Share of the decoded pixel values outside [0, 1], (B,), on the CPU."""


@dataclass(frozen=True)
class TerminalReward(Scores):
    """Rewards of terminal latents and their gradient."""

    gradient: Tensor
    """d r / d x_N, shape of the latents."""


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
        draws.append(plain_gradient(problem, perturbed, [sample.prompt for sample in samples]))
    return TerminalReward(
        rewards=torch.stack([draw.rewards for draw in draws]).mean(0),
        terms={name: torch.stack([draw.terms[name] for draw in draws]).mean(0) for name in draws[0].terms},
        gradient=smooth(torch.stack([draw.gradient for draw in draws]), smoothing.clip_quantile).gradient,
        clamped_share=torch.stack([draw.clamped_share for draw in draws]).mean(0),
    )


def plain_gradient(problem: ControlProblem, latents: Tensor, prompts: Sequence[str]) -> TerminalReward:
    """Gradient of the reward at latents (B, ...), as many at once as the decoder has room for."""

    def part(rows: Sequence[int]) -> TerminalReward:
        chosen = slice(rows[0], rows[-1] + 1)
        x = latents[chosen].detach().requires_grad_(True)
        with torch.enable_grad():
            images = problem.family.decode(x)
            values = problem.reward(images.clamp(0, 1), prompts[chosen])
            gradient = _differentiated(problem, values, x, prompts[chosen])
        terms = {name: value.detach().cpu() for name, value in values.terms.items()}
        return TerminalReward(values.total.detach().cpu(), terms, _outside(images).cpu(), gradient)

    return TerminalReward.cat(in_chunks(range(len(latents)), problem.pictures_at_once, part))


def _differentiated(problem: ControlProblem, values: RewardValues, x: Tensor, prompts: Sequence[str]) -> Tensor:
    """Gradient of the total with respect to latents x.

    Raises:
        RewardFailed: it cannot be computed or is not finite; the terms to blame are named.
    """
    try:
        (gradient,) = torch.autograd.grad(values.total.sum(), x)
    except RuntimeError as error:
        if is_shortage(error):
            raise
        raise RewardFailed(f"reward {_joined(values.terms)} cannot be differentiated: {error}") from error
    if not bool(gradient.isfinite().all()):
        bad = ~gradient.isfinite().flatten(1).all(1)
        rows = torch.nonzero(bad).flatten().tolist()
        shown = "; ".join(dict.fromkeys(repr(prompts[row]) for row in rows[:3]))
        raise RewardFailed(
            f"the gradient of the reward {_joined(_culprits(problem, x, prompts) or values.terms)} is not finite for "
            f"{len(rows)} of {len(x)} images (prompts: {shown}). {_REWARD_OR_MODEL}"
        )
    return gradient


def _culprits(problem: ControlProblem, x: Tensor, prompts: Sequence[str]) -> list[str]:
    """Terms whose own gradient is not finite; everything is computed again, for the run ends."""
    with torch.enable_grad():
        terms = problem.reward(problem.family.decode(x).clamp(0, 1), prompts).terms
    own = {name: torch.autograd.grad(term.sum(), x, retain_graph=True)[0] for name, term in terms.items()}
    return [name for name, gradient in own.items() if not bool(gradient.isfinite().all())]


def _joined(names: Iterable[str]) -> str:
    return " + ".join(map(repr, names))


_REWARD_OR_MODEL = (
    "Either the reward fails on these images, or the model has diverged: then lower optimizer.learning_rate."
)


def scores(problem: ControlProblem, latents: Tensor, prompts: Sequence[str]) -> Scores:
    """Rewards of the decoded latents (B, ...); any function of images will do, also one without a gradient."""

    def part(rows: Sequence[int]) -> Scores:
        chosen = slice(rows[0], rows[-1] + 1)
        return _scored(problem, latents[chosen], prompts[chosen])

    return Scores.cat(in_chunks(range(len(latents)), problem.pictures_at_once, part))


def group_scores(problem: ControlProblem, latents: Tensor, prompts: Sequence[str], groups: Tensor) -> Scores:
    """Rewards of this process's latents (b, ...), where each call of the reward needs one whole group.

    Groups (b,) may be spread over processes, which take turns in scoring them; all of them must call this. The samples
    of a group stand in the order of the collection.
    """
    everything = processes.gather_rows(latents)
    every_prompt, every_group = processes.gather(list(prompts)), processes.gather(groups.tolist())
    own: dict[int, tuple[float, dict[str, float], float]] = {}
    for group in processes.shard(sorted(set(every_group))):
        rows = [row for row, other in enumerate(every_group) if other == group]
        found = _scored(problem, everything[rows].to(latents.device), [every_prompt[row] for row in rows])
        for place, row in enumerate(rows):
            terms = {name: float(values[place]) for name, values in found.terms.items()}
            own[row] = float(found.rewards[place]), terms, float(found.clamped_share[place])
    known = {row: values for part in processes.gather([own]) for row, values in part.items()}
    used = [known[row] for row in processes.shard(range(len(every_group)))]
    return Scores(
        torch.tensor([total for total, _, _ in used]),
        {name: torch.tensor([terms[name] for _, terms, _ in used]) for name in used[0][1]},
        torch.tensor([share for _, _, share in used]),
    )


@torch.no_grad()
def _scored(problem: ControlProblem, latents: Tensor, prompts: Sequence[str]) -> Scores:
    """Rewards of latents (B, ...) in one call."""
    images = problem.family.decode(latents)
    values = problem.reward(images.clamp(0, 1), prompts)
    terms = {name: value.detach().cpu() for name, value in values.terms.items()}
    return Scores(values.total.detach().cpu(), terms, _outside(images).cpu())


def _outside(images: Tensor) -> Tensor:
    return ((images.detach() < 0) | (images.detach() > 1)).flatten(1).float().mean(1)


def require_finite_reward(terminal: TerminalReward, step: int, prompts: Sequence[str]) -> None:
    """Stop the run if a reward or its gradient is not finite.

    Raises:
        RunError: with the step and the prompts of the rows concerned.
    """
    named = {f"reward {name!r}": scores for name, scores in terminal.terms.items()}
    named["weighted reward"] = terminal.rewards
    named[f"gradient of the reward {_joined(terminal.terms)}"] = terminal.gradient
    for what, value in named.items():
        require_finite(value, what, step, "reward gradient", prompts, _REWARD_OR_MODEL)
