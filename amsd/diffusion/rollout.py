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
    """Steps of a batch, noisiest state first: all N, or the first of them."""

    states: Tensor
    """x_0 ... x_N, (B, N + 1, ...)."""
    noises: Tensor
    """z_0 ... z_{N-1}, standard normal, (B, N, ...)."""
    predictions: Tensor
    """Noise predictions that the steps were taken with (guided as the sampler is), (B, N, ...)."""

    @property
    def terminal(self) -> Tensor:
        """The last state, x_N (B, ...) where all steps were taken."""
        return self.states[:, -1]


@torch.no_grad()
def rollout(predict: Predictor, steps: AffineSteps, noise: Tensor) -> Trajectory:
    """Sample trajectories; `noise` (B, M + 1, ...) holds the initial state and then z_0 ... z_{M-1} of M <= N steps."""
    initial, noises = noise[:, 0], noise[:, 1:]
    states = torch.empty_like(noise)
    predictions = torch.empty_like(noises)
    states[:, 0] = initial
    for k in range(noises.shape[1]):
        predictions[:, k] = predict(states[:, k], k)
        states[:, k + 1] = steps.step(k, states[:, k], predictions[:, k], noises[:, k])
    return Trajectory(states, noises, predictions)
