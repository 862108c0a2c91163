"""Rewards without a network: smooth statistics of color, for smoke tests and for seeing what a reward does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from amsd.rewards.preprocess import check_pairs

_SMOOTHING = 1e-4
"""Added under square roots, so that a gray image has a finite gradient; values in squared intensities."""


class PixelReward:
    """Base of rewards that have no weights and read no prompt."""

    version = "1"

    def to(self, device: torch.device | str) -> Self:
        """Nothing to move: the computation follows the images."""
        return self

    def truncated(self, prompts: Sequence[str]) -> int:
        """No prompt is read, so none is cut."""
        return 0


class Brightness(PixelReward):
    """Mean luma, 0 (black) to 1 (white), with the weights of ITU-R BT.601."""

    name = "brightness"

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) in [0, 1] of images (B, 3, H, W)."""
        check_pairs(images, prompts)
        red, green, blue = images.float().mean((2, 3)).unbind(1)
        return 0.299 * red + 0.587 * green + 0.114 * blue


class Colorfulness(PixelReward):
    """Colorfulness of Hasler and Süsstrunk (2003), eq. M^(3), in units of full intensity; 0 for gray images.

    With rg = R - G and yb = (R + G)/2 - B: |(sd rg, sd yb)| + 0.3 |(mean rg, mean yb)|, both lengths smoothed at 0.
    """

    name = "colorfulness"

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,), 0 or more, of images (B, 3, H, W)."""
        check_pairs(images, prompts)
        red, green, blue = images.float().unbind(1)
        opponents = torch.stack([red - green, (red + green) / 2 - blue], dim=1)
        spread = opponents.var((2, 3), unbiased=False).sum(1)
        shift = opponents.mean((2, 3)).square().sum(1)
        return _root(spread) + 0.3 * _root(shift)


class FormerColorfulness(Colorfulness):
    """The same under its name of before, which older recipes have."""

    name = "colourfulness"


def _root(squared: Tensor) -> Tensor:
    """Square root that is 0 at 0 and smooth there."""
    return (squared + _SMOOTHING).sqrt() - math.sqrt(_SMOOTHING)
