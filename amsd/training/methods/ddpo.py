"""DDPO (Black et al., arXiv 2305.13301); on a flow path it is Flow-GRPO (Liu et al., arXiv 2505.05470).

A trajectory is a Markov decision process whose actions are the sampler's Gaussian steps. PPO's clipped objective
weighs the ratio of the step's densities, new against old, by the advantage within the prompt's group. The reward is
only called. The density is that of the whole step, not its mean over dimensions, so the ratio is the exact importance
weight (docs/method.md section 5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from amsd.diffusion.noise import generator
from amsd.diffusion.steps import at
from amsd.matching import (
    control,
    inverse_probabilities,
    norm_ratio,
    normalized_ess,
    plan_indices,
    stepwise_log_weights,
)
from amsd.recipe import Recipe
from amsd.recipe.methods.policy_gradient import DDPO
from amsd.rows import on_device
from amsd.training.experience import LATENT, ItemLosses, Sample, StoredSteps
from amsd.training.groups import EQUAL_REWARDS, group_numbers, judged, judged_alone, scaled_advantages
from amsd.training.record import gathered, means, reward_values
from amsd.training.sampling import sampled
from amsd.training.sources import Batch
from amsd.training.trainer import BufferSOCTrainer


@dataclass(frozen=True)
class Actions(StoredSteps):
    """M stored steps of each of B trajectories, and what the trajectory was worth."""

    states: Tensor = field(metadata=LATENT)
    """x_k, (B, M, ...)."""
    noises: Tensor = field(metadata=LATENT)
    """z_k, standard normal: the action in units of the step's standard deviation, (B, M, ...)."""
    predictions: Tensor = field(metadata=LATENT)
    """Of the policy that sampled, (B, M, ...)."""
    clamped_share: Tensor
    """Share of the decoded pixel values outside [0, 1], (B,), on the CPU."""
    groups: Tensor
    """Number of the group of samples that share a prompt, LongTensor (B,) on the CPU."""
    advantages: Tensor
    """(B,), on the CPU; not known before the collection is complete."""
    endpoints: Tensor | None = field(metadata=LATENT)
    """Terminal latents (B, ...) of a reward that compares the samples of a group, until the collection is complete."""


class DDPOTrainer(BufferSOCTrainer[Actions]):
    """Clipped policy gradient at K steps of each trajectory."""

    experience_class = Actions
    flat_reason = f"{EQUAL_REWARDS}, or every ratio is clipped (ratio/clipped_share)"

    @classmethod
    def weighs_by_control(cls, recipe: Recipe) -> bool:
        """The logarithm of a step's density ratio is linear in its control."""
        return True

    @property
    def method(self) -> DDPO:
        """The recipe's `[method]`."""
        assert isinstance(self.recipe.method, DDPO)
        return self.recipe.method

    def compute_experience(self, samples: Sequence[Sample], passes: int, step: int) -> Actions:
        """Trajectories of the current policy and their rewards."""
        problem, prompts = self.problem, [sample.prompt for sample in samples]
        steps, count = problem.steps, self.method.timesteps_per_trajectory
        with self.clock.phase("rollout"):
            conditioning, trajectory = sampled(problem, samples, step)
        end = trajectory.terminal
        found = judged_alone(problem, self.clock, end, prompts, step)
        available = len(steps.controlled)
        plans = [plan_indices(available, count, passes, generator(*s.key, "indices")) for s in samples]
        stored = steps.controlled[torch.stack([plan.stored for plan in plans])]
        pick = torch.arange(len(stored))[:, None]
        return Actions(
            prompts=tuple(prompts), conditioning=conditioning, rewards=found.rewards, terms=found.terms,
            indices=stored, columns=torch.stack([plan.columns for plan in plans]),
            states=trajectory.states[pick, stored], noises=trajectory.noises[pick, stored],
            predictions=trajectory.predictions[pick, stored], clamped_share=found.clamped_share,
            groups=group_numbers(samples, self.method.samples_per_prompt),
            advantages=torch.full((len(samples),), torch.nan, dtype=torch.float64),
            endpoints=end if problem.groupwise else None,
        )  # fmt: skip

    def complete(self, experience: Actions) -> Actions:
        """Advantages within each prompt's group, over all processes."""
        if experience.endpoints is not None:
            end, prompts, groups = experience.endpoints, experience.prompts, experience.groups
            found = judged(self.problem, self.clock, end, prompts, self.step + 1, groups)
            experience = replace(experience, rewards=found.rewards, terms=found.terms,
                                 clamped_share=found.clamped_share, endpoints=None)  # fmt: skip
        scale = self.method.advantage_scale
        return replace(experience, advantages=scaled_advantages(experience.groups, experience.rewards, scale))

    def losses(self, experience: Actions, rows: Tensor, pass_index: int) -> ItemLosses:
        """Clipped objective of K steps of each trajectory, weighted so that steps drawn count as all steps do."""
        steps, device, method = self.problem.steps, self.problem.device, self.method
        columns = experience.columns_of(rows, pass_index)
        count = columns.shape[1]
        row, column = rows.repeat_interleave(count), columns.flatten()
        k = experience.indices[row, column]
        x, noise, before = (
            value[on_device(row, value.device), on_device(column, value.device)].to(device, torch.float32)
            for value in (experience.states, experience.noises, experience.predictions)
        )
        conditioning = experience.conditioning.rows(row).map(lambda value: value.to(device))
        scale = self.recipe.guidance.guidance_scale
        prediction = self.problem.finetuned(conditioning, scale)(x, k)
        step_scale = at(steps.control_scale, k, x)
        log_ratio = stepwise_log_weights(control(prediction, before, step_scale), noise)
        advantages = on_device(experience.advantages[row].to(log_ratio.dtype), device)
        each = inverse_probabilities(len(steps.controlled), k.view(-1, count)).flatten() * count / len(steps.controlled)
        loss = clipped_loss(log_ratio, advantages, method.clip_range)
        logged = {"index": k, "log_ratio": log_ratio.detach(), "advantage": advantages}
        if method.kl_weight:
            with torch.no_grad():
                base = self.problem.base(conditioning, scale)(x, k)
            moved = control(prediction, base, step_scale).flatten(1).square().sum(1)
            loss = loss + 0.5 * method.kl_weight * moved
            logged |= {"control_norm": moved.detach(), "prediction_ratio": norm_ratio(prediction, base).detach()}
        return ItemLosses(loss * each.to(loss), logged)

    def after_step(self, items: ItemLosses) -> None:
        """Collect again once the policy is too far from the one that sampled."""
        self.source.feedback(normalized_ess(items.logged["log_ratio"]))

    def step_values(self, batch: Batch[Actions], items: ItemLosses) -> dict[str, float]:
        """Rewards, advantages, how far the policy has moved, and how much of it is clipped."""
        experience, rows = batch.experience, batch.rows
        values = reward_values(experience.rewards[rows], experience.terms, rows)
        values |= means({"clamped_share": experience.clamped_share[rows]})
        advantages = gathered(experience.advantages[rows])
        log_ratio, advantage = items.logged["log_ratio"].double(), items.logged["advantage"]
        ratio = log_ratio.exp()
        clipped = torch.where(advantage > 0, ratio > 1 + self.method.clip_range, ratio < 1 - self.method.clip_range)
        values |= {
            "advantage/std": float(advantages.std(correction=0)),
            "advantage/zero_share": float((advantages == 0).double().mean()),
            "ratio/mean": float(ratio.mean()),
            "ratio/clipped_share": float((clipped & (advantage != 0)).double().mean()),
            "kl_to_sampler": float((ratio - 1 - log_ratio).mean()),
            "ess": normalized_ess(log_ratio),
        }
        if "control_norm" in items.logged:
            count = self.method.timesteps_per_trajectory
            index, moved = items.logged["index"].view(-1, count), items.logged["control_norm"].double().view(-1, count)
            each = inverse_probabilities(len(self.problem.steps.controlled), index)
            values["kl"] = 0.5 * float((moved * each).sum(1).mean())
            values["prediction_ratio"] = float(items.logged["prediction_ratio"].mean())
        return values


def clipped_loss(log_ratio: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """-min(rho A, clip(rho, 1 - c, 1 + c) A) of each item (M,) (Schulman et al., "PPO", arXiv 1707.06347, eq. 7)."""
    ratio = log_ratio.exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip_range, 1 + clip_range) * advantages)
