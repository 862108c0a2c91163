"""DRaFT-K (Clark et al., "Directly Fine-Tuning Diffusion Models on Differentiable Rewards", arXiv 2309.17400).

The last K steps of the controlled sampler are taken with gradients, at any eta. There is no path cost and no tilt: what
holds the policy back is a short run, weight decay or a small LoRA.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from amsd.diffusion.guidance import NetworkPredictor
from amsd.diffusion.steps import AffineSteps
from amsd.recipe.methods.backpropagation import DRaFT
from amsd.training.experience import Sample
from amsd.training.methods.backpropagation import BackpropagationTrainer, Partway


class DRaFTTrainer(BackpropagationTrainer):
    """The reward of the sample itself, through the last K steps."""

    @property
    def noisy_steps(self) -> int:
        """K."""
        method = self.recipe.method
        assert isinstance(method, DRaFT)
        return method.steps(len(self.problem.steps))

    def first_steps(self, samples: Sequence[Sample]) -> Tensor:
        """N - K for every sample."""
        return torch.full((len(samples),), len(self.problem.steps) - self.noisy_steps)

    def clean(self, used: Partway, predict: NetworkPredictor) -> Tensor:
        """x_N."""
        device = self.problem.device
        x, noises = used.states.to(device, torch.float32), used.noises.to(device, torch.float32)
        save_memory = self.recipe.training.gradient_checkpointing
        return last_steps(predict, self.problem.steps, x, noises, save_memory)


def last_steps(predict: NetworkPredictor, steps: AffineSteps, x: Tensor, noises: Tensor, save_memory: bool) -> Tensor:
    """x_N (B, ...) from x = x_{N-K} and the noise of the last K steps (B, K, ...), with gradients.

    `save_memory` keeps the states alone and computes each step again on the way back.
    """
    count = noises.shape[1]
    for column, k in enumerate(range(len(steps) - count, len(steps))):

        def step(x: Tensor, k: int = k, column: int = column) -> Tensor:
            return steps.step(k, x, predict(x, k), noises[:, column])

        x = checkpoint(step, x, use_reentrant=False) if save_memory and count > 1 else step(x)
    return x
