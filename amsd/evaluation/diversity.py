"""Diversity of a prompt's samples: variance of normalized embeddings."""

from __future__ import annotations

import torch
from torch import Tensor

from amsd.errors import UsageError


def embedding_variance(embeddings: Tensor) -> Tensor:
    """Variance per prompt (P,), float64, of embeddings (P, S, D), which are L2-normalized here.

    sum_ij |e_i - e_j|^2 / (2 S (S - 1)), which is the unbiased variance summed over dimensions (docs/method.md
    section 6).

    Raises:
        UsageError: S = 1, where the variance is undefined.
    """
    prompts, samples, _ = embeddings.shape
    if samples < 2:
        raise UsageError(
            f"diversity is undefined for {samples} sample per prompt ({prompts} prompts): "
            "set evaluation.samples_per_prompt to 2 or more"
        )
    directions = torch.nn.functional.normalize(embeddings.double(), dim=-1)
    return directions.var(dim=1, correction=1).sum(-1)
