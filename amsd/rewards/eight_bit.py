"""Scorers that can read pictures in two ways: with gradient for training, or as the original reads files from disk."""

from __future__ import annotations

from copy import copy
from typing import Protocol, Self

from torch import Tensor

from amsd.rewards.protocol import Reward


class _Path(Protocol):
    @property
    def eight_bit(self) -> bool: ...

    def __call__(self, images: Tensor) -> Tensor: ...

    def on_eight_bits(self) -> Self: ...


class EightBitPath:
    """Base of such scorers; `_images` is what turns images into network input, or into embeddings."""

    _images: _Path
    _fingerprint: str

    @property
    def version(self) -> str:
        """Hash of weights and tokenizer, and which path is taken."""
        return f"1-{self._fingerprint}{'-8bit' if self._images.eight_bit else ''}"

    def on_eight_bits(self) -> Self:
        """The same scorer, sharing its weights, on the original's 8-bit path (without gradient)."""
        other = copy(self)
        other._images = self._images.on_eight_bits()
        return other


def as_original(reward: Reward) -> Reward:
    """The scorer as its original scores pictures on disk, where it can; else itself."""
    return reward.on_eight_bits() if isinstance(reward, EightBitPath) else reward
