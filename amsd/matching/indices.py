"""Which steps of a trajectory enter the loss (docs/method.md section 4)."""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True)
class IndexPlan:
    """Which steps of one trajectory are stored, and which of them each pass uses."""

    stored: Tensor
    """Ascending positions among the controlled steps, LongTensor (M,)."""
    columns: Tensor
    """LongTensor (min(passes, PLANNED), K): positions in `stored`; after the last row comes the first one again."""


PLANNED = 1000
"""Passes that a plan tells apart: more of them take no more memory."""


def plan_indices(num_steps: int, count: int, passes: int, generator: torch.Generator) -> IndexPlan:
    """Stratified step indices for every pass, repeating a step only once its stratum is used up.

    Each pass is distributed as `stratified_indices`; M depends on the arguments alone, not on the draw.
    """
    passes = min(passes, PLANNED)
    stored, chosen = [], []
    for stratum, share in strata(num_steps, count):
        if not share:
            continue
        per_round = len(stratum) // share
        rounds = -(-passes // per_round)
        draws = torch.cat(
            [
                torch.randperm(len(stratum), generator=generator)[: per_round * share].view(per_round, share)
                for _ in range(rounds)
            ]
        )[:passes]
        chosen.append(draws + stratum.start)
        everything = torch.arange(stratum.start, stratum.stop)
        stored.append(chosen[-1].flatten().sort().values if rounds == 1 else everything)
    kept = torch.cat(stored)
    return IndexPlan(kept, torch.searchsorted(kept, torch.cat(chosen, 1).sort(1).values))
