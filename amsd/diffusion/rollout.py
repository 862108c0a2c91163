"""Sampling of trajectories on the affine steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from amsd.diffusion.steps import AffineSteps, Index

Predictor = Callable[[Tensor, Index], Tensor]
"""eps(x (B, ...), k) -> (B, ...)."""


@dataclass(frozen=True)
class Trajectory:
    """N steps of a batch, noisiest state first."""

    states: Tensor
    """x_0 ... x_N, (B, N + 1, ...)."""
    noises: Tensor
    """z_0 ... z_{N-1}, standard normal, (B, N, ...)."""
    predictions: Tensor
    """Noise predictions that the steps were taken with (guided as the sampler is), (B, N, ...)."""

    @property
    def terminal(self) -> Tensor:
        """x_N, (B, ...)."""
        return self.states[:, -1]


@torch.no_grad()
def rollout(predict: Predictor, steps: AffineSteps, noise: Tensor) -> Trajectory:
    """Sample trajectories; `noise` (B, N + 1, ...) holds the initial state and then z_0 ... z_{N-1}."""
    initial, noises = noise[:, 0], noise[:, 1:]
    states = torch.empty_like(noise)
    predictions = torch.empty_like(noises)
    states[:, 0] = initial
    for k in range(len(steps)):
        predictions[:, k] = predict(states[:, k], k)
        states[:, k + 1] = steps.step(k, states[:, k], predictions[:, k], noises[:, k])
    return Trajectory(states, noises, predictions)
