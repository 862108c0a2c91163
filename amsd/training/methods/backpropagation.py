"""Back-propagation of the reward through the sampler: what DRaFT and ReFL share (docs/method.md section 9).

Experience ends before the first step with gradients. The loss takes it up from there, so that collecting needs no
memory for activations, and the decoder's activations are gone before those of the network are used.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from amsd.diffusion.guidance import NetworkPredictor
from amsd.diffusion.steps import AffineSteps
from amsd.training.experience import LATENT, Experience, ItemLosses, Sample
from amsd.training.rewards import plain_gradient, require_finite_reward
from amsd.training.sampling import require_sampled, sampler_noise
from amsd.training.sources import Batch
from amsd.training.trainer import SOCTrainer


@dataclass(frozen=True)
class Partway(Experience):
    """Trajectories up to the first step that is taken with gradients."""

    indices: Tensor
    """That step, LongTensor (B,) on the CPU."""
    states: Tensor = field(metadata=LATENT)
    """The state that it starts from, (B, ...)."""
    noises: Tensor = field(metadata=LATENT)
    """Noise of the last M steps, (B, M, ...); M may be 0."""


class BackpropagationTrainer(SOCTrainer[Partway]):
    """The loss is minus the reward of a latent that a child class computes with gradients."""

    experience_class = Partway

    @abstractmethod
    def first_steps(self, samples: Sequence[Sample]) -> Tensor:
        """The step of each sample from which on there are gradients, LongTensor (B,)."""

    @property
    @abstractmethod
    def noisy_steps(self) -> int:
        """Number M of last steps whose noise `clean` needs."""

    @abstractmethod
    def clean(self, used: Partway, predict: NetworkPredictor) -> Tensor:
        """The latent whose reward counts (B, ...), differentiable in the trained parameters."""

    def compute_experience(self, samples: Sequence[Sample], passes: int, step: int) -> Partway:
        """Trajectories without gradients."""
        problem, prompts = self.problem, [sample.prompt for sample in samples]
        steps, first = problem.steps, self.first_steps(samples)
        with self.clock.phase("rollout"):
            conditioning = problem.encode(prompts)
            noise = sampler_noise(problem, samples)
            predict = problem.finetuned(conditioning, self.recipe.guidance.guidance_scale)
            with problem.policy.held():
                states = partial_rollout(predict, steps, noise, first)
            require_sampled(states, step, "rollout", prompts)
        noises = noise[:, len(steps) + 1 - self.noisy_steps :]
        return Partway(tuple(prompts), conditioning, indices=first, states=states, noises=noises)

    def losses(self, experience: Partway, rows: Tensor, pass_index: int) -> ItemLosses:
        """Minus the reward of each trajectory.

        The reward is differentiated to the latent first; the product with that gradient carries it on.
        """
        used, device = experience.rows(rows), self.problem.device
        conditioning = used.conditioning.map(lambda value: value.to(device))
        latent = self.clean(used, self.problem.finetuned(conditioning, self.recipe.guidance.guidance_scale))
        require_sampled(latent, self.step + 1, "loss", used.prompts)
        found = plain_gradient(self.problem, latent.detach(), used.prompts)
        require_finite_reward(found, self.step + 1, used.prompts)
        change = ((latent - latent.detach()) * found.gradient).flatten(1).sum(1)  # zero, with the reward's gradient
        logged = {f"reward/{name}": values for name, values in found.terms.items()}
        logged |= {"reward": found.rewards, "clamped_share": found.clamped_share}
        logged |= {"reward_gradient_norm": found.gradient.flatten(1).norm(dim=1)}
        return ItemLosses(-(found.rewards.to(latent) + change), logged)

    def step_values(self, batch: Batch[Partway], items: ItemLosses) -> dict[str, float]:
        """Rewards, the size of their gradients, and pixels that have none."""
        values = {name: float(each.double().mean()) for name, each in items.logged.items()}
        rewards = items.logged["reward"].double()
        return values | {"reward/mean": values.pop("reward"), "reward/std": float(rewards.std(correction=0))}


@torch.no_grad()
def partial_rollout(predict: NetworkPredictor, steps: AffineSteps, noise: Tensor, ends: Tensor) -> Tensor:
    """State x_k (B, ...) of each trajectory at its own k = `ends` (B,), which takes k network calls.

    `noise` (B, N + 1, ...) holds the initial state and then the noise of the steps.
    """
    x = noise[:, 0].clone()
    for k in range(int(ends.max())):
        rows = torch.nonzero(ends > k).flatten().to(x.device)
        here = x[rows]
        x[rows] = steps.step(k, here, predict.rows(rows)(here, k), noise[rows, k + 1])
    return x
