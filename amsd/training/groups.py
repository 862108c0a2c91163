"""Groups of samples that share a prompt: their rewards, and the advantage of each sample within its group.

Groups may be spread over processes. Advantages and rewards of whole groups need all of them: every process must call
these functions, each with its own samples.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from amsd.training import processes
from amsd.training.clock import PhaseClock
from amsd.training.experience import Sample
from amsd.training.problem import ControlProblem, remedy, require_finite
from amsd.training.rewards import Scores, group_scores, scores

EQUAL_REWARDS = "within each group of samples of one prompt all rewards are equal (reward/std)"
"""Why a step of a method that compares them may have no gradient."""

NO_SPREAD = 1e-6
"""Standard deviation, as a share of the largest reward, below which rewards count as equal."""


def group_numbers(samples: Sequence[Sample], size: int) -> Tensor:
    """Number of each sample's group in its collection (b,): consecutive samples share a prompt."""
    return torch.tensor([int(sample.key[-1]) // size for sample in samples])


def judged(
    problem: ControlProblem,
    clock: PhaseClock,
    latents: Tensor,
    prompts: Sequence[str],
    step: int,
    groups: Tensor | None = None,
) -> Scores:
    """Rewards of latents (b, ...) without gradient; with `groups` (b,) each call of the reward gets one whole group.

    Raises:
        RunError: a reward is not finite.
    """
    with clock.phase("reward gradient"):
        found = scores(problem, latents, prompts) if groups is None else group_scores(problem, latents, prompts, groups)
        for name, values in {**found.terms, "weighted": found.rewards}.items():
            require_finite(values, f"reward {name!r}", step, "reward", prompts, remedy(problem.recipe))
    return found


def judged_alone(
    problem: ControlProblem, clock: PhaseClock, latents: Tensor, prompts: Sequence[str], step: int
) -> Scores:
    """As `judged`; of a reward that compares the samples of a group, of which nothing is known yet: NaN."""
    if problem.groupwise:
        unknown = torch.full((len(prompts),), torch.nan)
        return Scores(unknown, {}, unknown)
    return judged(problem, clock, latents, prompts, step)


def leave_one_out(groups: Tensor, rewards: Tensor) -> Tensor:
    """Reward minus the mean of the other samples of its group (b,).

    A mean that includes the sample would scale lambda by 1 - 1/G.
    """
    members = _members(groups, rewards)
    sums = {group: (sum(values), len(values)) for group, values in members.items()}
    own = zip(groups.tolist(), rewards.double().tolist(), strict=True)
    return torch.tensor([reward - (sums[group][0] - reward) / (sums[group][1] - 1) for group, reward in own])


def scaled_advantages(groups: Tensor, rewards: Tensor, scale: Literal["group", "batch", "none"]) -> Tensor:
    """Advantages (b,): undivided they leave the sample out, divided they are standardized as in GRPO.

    `group` divides by the standard deviation within the group, `batch` by that of all centered rewards. A group whose
    rewards are all alike has advantage 0.
    """
    if scale == "none":
        return leave_one_out(groups, rewards)
    members = {group: torch.tensor(values, dtype=torch.float64) for group, values in _members(groups, rewards).items()}
    centered = {group: values - values.mean() for group, values in members.items()}
    largest = max(float(values.abs().max()) for values in members.values())
    common = float(torch.cat(list(centered.values())).std(correction=0))
    own = []
    for group, reward in zip(groups.tolist(), rewards.double().tolist(), strict=True):
        spread = common if scale == "batch" else float(centered[group].std(correction=0))
        own.append((reward - float(members[group].mean())) / spread if spread > NO_SPREAD * largest else 0.0)
    return torch.tensor(own)


def _members(groups: Tensor, rewards: Tensor) -> dict[int, list[float]]:
    """Rewards of each group, over all processes."""
    members: dict[int, list[float]] = defaultdict(list)
    for group, reward in processes.gather(list(zip(groups.tolist(), rewards.double().tolist(), strict=True))):
        members[group].append(reward)
    return members
