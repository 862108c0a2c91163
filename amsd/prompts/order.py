"""Which prompts a batch has: a pure function of the seed and the batch's number.

Nothing has to be saved for a resume, and the order is the same at any number of processes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from amsd.diffusion.noise import generator


class PromptDataModule:
    """Epoch-wise shuffled prompts: batches run through one permutation after another, across epoch borders."""

    def __init__(self, prompts: Sequence[str], seed: int) -> None:
        if not prompts:
            raise ValueError("prompts must not be empty")
        self.prompts = tuple(prompts)
        self.seed = seed
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.long)

    def batch(self, number: int, size: int) -> list[str]:
        """Prompts of the `number`-th global batch of `size`."""
        first = number * size
        return [self.prompts[self._at(position)] for position in range(first, first + size)]

    def _at(self, position: int) -> int:
        epoch, offset = divmod(position, len(self.prompts))
        return int(self._permutation(epoch)[offset])

    def _permutation(self, epoch: int) -> torch.Tensor:
        if self._epoch != epoch:
            self._epoch = epoch
            self._order = torch.randperm(len(self.prompts), generator=generator("prompts", self.seed, epoch))
        return self._order
