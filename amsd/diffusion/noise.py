"""Random numbers that depend on what they are for, not on who draws them or in which order.

Every draw is keyed, so a trajectory has the same noise at any micro-batch size, on any process and after a resume.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

Key = tuple[int | str, ...]


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator seeded by the hash of `key`, such as `("noise", seed, step, position)`."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def normal(keys: Sequence[Key], shape: Sequence[int], device: torch.device | str, dtype: torch.dtype) -> Tensor:
    """Standard normal noise (B, *shape), row i drawn from `generator(*keys[i])` alone."""
    drawn = torch.empty((len(keys), *shape), dtype=dtype, pin_memory=torch.device(device).type == "cuda")
    for row, key in zip(drawn, keys, strict=True):
        torch.randn(tuple(shape), generator=generator(*key), dtype=dtype, out=row)
    return drawn.to(device, non_blocking=True)
