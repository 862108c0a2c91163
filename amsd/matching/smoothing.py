"""Reward-gradient smoothing with per-sample clipping (docs/method.md section 4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SmoothedGradient:
    """Average of clipped gradients over perturbed copies of a sample."""

    gradient: Tensor
    """(B, ...)."""
    norms: Tensor
    """Norm of each draw's gradient before clipping, (n, B)."""
    scaling: Tensor
    """Factor that clipping multiplied each draw by, (n, B), at most 1."""


def smooth(gradients: Tensor, clip_quantile: float | None) -> SmoothedGradient:
    """Average draws (n, B, ...), each clipped to the `clip_quantile` quantile of its sample's n gradient norms."""
    norms = gradients.flatten(2).norm(dim=2)
    if clip_quantile is None:
        return SmoothedGradient(gradients.mean(0), norms, torch.ones_like(norms))
    limit = torch.quantile(norms, clip_quantile, dim=0, keepdim=True)
    scaling = (limit / norms.clamp(min=1e-8)).clamp(max=1)
    shape = (*scaling.shape, *[1] * (gradients.ndim - 2))
    return SmoothedGradient((gradients * scaling.reshape(shape)).mean(0), norms, scaling)
