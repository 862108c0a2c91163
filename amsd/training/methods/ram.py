"""RAM (arXiv 2605.10759): regression weighted by advantages within a prompt's group; any reward, no gradient of it.

target = base(x_t) + lambda A (path target - old(x_t)), where `old` is the slow average of the policy that also samples.
It takes one step of the covariance of reward and noise in the place of the tilt's whole way, so it is exact for linear
rewards only; where it rests for a quadratic one is derived and checked in docs/method.md section 9.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from amsd.training.experience import Sample
from amsd.training.groups import EQUAL_REWARDS, group_numbers, judged, judged_alone, leave_one_out
from amsd.training.methods.regression import PathPoints, RegressionTrainer
from amsd.training.sampling import dropped


class RAMTrainer(RegressionTrainer):
    """Experience is groups of samples and their advantages."""

    flat_reason = EQUAL_REWARDS

    def compute_experience(self, samples: Sequence[Sample], passes: int, step: int) -> PathPoints:
        """Endpoints, their rewards, and the two frozen predictions at path points of each."""
        prompts, steps = [sample.prompt for sample in samples], self.problem.steps
        indices, without_prompt = self.indices(samples), dropped(self.problem, samples)
        with self.clock.phase("rollout"), self.sampler.applied():
            conditioning, trajectory = self.draw(samples, step)
            used = conditioning.dropped(without_prompt)
            end, noises = trajectory.terminal, self.noises(samples)
            columns = range(indices.shape[1])
            states = torch.stack([steps.point(indices[:, j], end, noises[:, j]) for j in columns], 1)
            old = self.predictions("finetuned", used, states, indices)
            wanted = torch.stack([steps.target(end, noises[:, j]) for j in columns], 1)
        with self.clock.phase("rollout"):
            base = self.predictions("base", used, states, indices)
        found = judged_alone(self.problem, self.clock, end, prompts, step)
        return PathPoints(
            prompts=tuple(prompts), conditioning=conditioning, rewards=found.rewards, terms=found.terms,
            indices=indices, states=states, base_predictions=base, targets=wanted - old, dropped=without_prompt,
            clamped_share=found.clamped_share, groups=group_numbers(samples, self.method.samples_per_prompt), noted={},
            endpoints=end if self.problem.groupwise else None,
        )  # fmt: skip

    def complete(self, experience: PathPoints) -> PathPoints:
        """Advantages over the other samples of the group, over all processes, make the directions targets."""
        if experience.endpoints is not None:
            experience = self._judged(experience, experience.endpoints)
        advantages = leave_one_out(experience.groups, experience.rewards)
        strength = self.method.reward_multiplier * advantages
        shape = (-1, *[1] * (experience.targets.ndim - 1))
        targets = experience.base_predictions + strength.to(experience.targets).view(shape) * experience.targets
        return replace(experience, targets=targets, noted={"repelled_share": (strength < -1).double()})

    def _judged(self, experience: PathPoints, end: Tensor) -> PathPoints:
        """The rewards of whole groups, over all processes."""
        prompts, groups = experience.prompts, experience.groups
        found = judged(self.problem, self.clock, end, prompts, self.step + 1, groups)
        return replace(experience, rewards=found.rewards, terms=found.terms, clamped_share=found.clamped_share,
                       endpoints=None)  # fmt: skip
