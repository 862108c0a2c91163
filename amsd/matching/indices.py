"""Which steps of a trajectory enter the loss (method.md section 4)."""

from __future__ import annotations

import torch
from torch import Tensor

#: Share of the steps, from the noisiest on, that gets the first half of the draws.
FIRST_STRATUM = 0.6


def strata(num_steps: int, count: int) -> tuple[tuple[range, int], tuple[range, int]]:
    """Two strata of step indices, and how many of `count` are drawn from each.

    Half (rounded down) comes from the first 60% of the steps; a stratum too small for its share passes the rest on.

    Raises:
        ValueError: more indices are asked for than there are steps.
    """
    if not 1 <= count <= num_steps:
        raise ValueError(f"count must lie between 1 and num_steps = {num_steps}, but got {count}")
    border = round(FIRST_STRATUM * num_steps)
    first, second = range(border), range(border, num_steps)
    from_first = min(count // 2, len(first))
    from_second = min(count - from_first, len(second))
    return (first, count - from_second), (second, from_second)


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
