"""Importance of stored experience for the current policy (docs/method.md section 5)."""

from __future__ import annotations

import torch
from torch import Tensor


def stepwise_log_weights(difference: Tensor, noise: Tensor) -> Tensor:
    """log w = -|d|^2 / 2 + <d, z> for controls differing by d (M, ...) at noises z (M, ...); returns (M,).

    d = c (eps_theta - eps_buffer), both guided as the sampler was: the log ratio of two Gaussian transition densities.
    """
    flat = difference.flatten(1)
    return (flat * noise.flatten(1)).sum(1) - 0.5 * flat.square().sum(1)


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """ESS = (sum w)^2 / sum w^2 over the last dimension, computed without overflow; between 1 and its size."""
    return torch.exp(2 * torch.logsumexp(log_weights, -1) - torch.logsumexp(2 * log_weights, -1))


def normalized_ess(log_weights: Tensor) -> float:
    """ESS of weights (M,) as a share of their number; 1 for equal weights."""
    return float(effective_sample_size(log_weights.double())) / len(log_weights)


def self_normalized_weights(log_weights: Tensor) -> Tensor:
    """Weights of mean 1 over the last dimension, same shape."""
    return torch.softmax(log_weights, -1) * log_weights.shape[-1]
