"""Which steps of a trajectory enter the loss (docs/method.md section 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from amsd.strata import strata


def stratified_indices(num_steps: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` distinct step indices out of `num_steps`, stratified and sorted; LongTensor (count,)."""
    drawn = [
        torch.randperm(len(stratum), generator=generator)[:share] + stratum.start
        for stratum, share in strata(num_steps, count)
    ]
    return torch.cat(drawn).sort().values


def inverse_probabilities(num_steps: int, indices: Tensor) -> Tensor:
    """1 / P(index is drawn) for each of `indices` (..., K): sums over K become unbiased sums over all steps.

    Same shape as `indices`, float64; used for the KL estimate, which needs every step.
    """
    weights = torch.zeros(num_steps, dtype=torch.float64)
    for stratum, share in strata(num_steps, indices.shape[-1]):
        if share:
            weights[stratum.start : stratum.stop] = len(stratum) / share
    return weights[indices.cpu()]
