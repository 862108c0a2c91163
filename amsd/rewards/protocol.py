"""What a reward is to the rest of amsd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self

import torch
from torch import Tensor


class Reward(Protocol):
    """A score of images under their prompts, as a reward or as an evaluation metric.

    Most methods differentiate it with respect to the images; some need no gradient (`MethodSection`).
    """

    @property
    def name(self) -> str:
        """Name in recipes, such as `imagereward` or `pyiqa:musiq`."""
        ...

    @property
    def version(self) -> str:
        """Changes whenever the same image could get another score (weights' hash, formula)."""
        ...

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score images (B, 3, H, W), float in [0, 1]; returns scores (B,), float32, higher is better."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """Move weights to a device."""
        ...

    def truncated(self, prompts: Sequence[str]) -> int:
        """How many of these prompts are longer than the scorer reads."""
        ...


class Embedder(Protocol):
    """An image embedding whose variance within a prompt is the diversity."""

    @property
    def name(self) -> str:
        """Name in recipes, such as `dreamsim` or `clip`."""
        ...

    @property
    def version(self) -> str:
        """Changes whenever the same image could get another embedding."""
        ...

    def __call__(self, images: Tensor) -> Tensor:
        """Embed images (B, 3, H, W), float in [0, 1]; returns (B, D), not necessarily normalized."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """Move weights to a device."""
        ...
