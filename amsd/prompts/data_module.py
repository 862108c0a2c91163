"""Which prompts every batch holds: pure functions of seed and batch number.

Resuming therefore needs no iterator state, and the order is the same at any number of processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache


class PromptDataModule:
    """An endless stream of prompts, cut into batches: epoch after epoch, each in an order of its own.

    Every prompt is used once before any is used twice; a batch may reach over the end of an epoch.
    """

    def __init__(self, texts: Sequence[str], seed: int) -> None:
        if not texts:
            raise ValueError("there must be at least one prompt, but got none")
        self.texts = tuple(texts)
        self.seed = seed

    def indices(self, number: int, size: int) -> tuple[int, ...]:
        """Indices of the prompts of the `number`-th batch of `size` (over all processes), counted from 0."""
        start, count = number * size, len(self.texts)
        positions = range(start, start + size)
        return tuple(permutation(count, self.seed, "prompts", at // count)[at % count] for at in positions)

    def batch(self, number: int, size: int) -> list[str]:
        """Prompts of the `number`-th batch of `size` (over all processes), counted from 0."""
        return [self.texts[index] for index in self.indices(number, size)]


class BufferPromptDataModule(PromptDataModule):
    """Prompts of an experience buffer's collections, and the order in which its passes use the trajectories.

    Trajectory i sits in slot i mod P, with P = `prompts_per_step`; an optimizer step takes one trajectory out of every
    slot. Whoever holds trajectories by slot thus has the same share of every step, and no step is ever short.
    If P does not divide the buffer's size, each pass leaves out the remainder: another one in every pass.
    """

    def __init__(self, texts: Sequence[str], seed: int, size: int, prompts_per_step: int) -> None:
        super().__init__(texts, seed)
        if size < 1 or prompts_per_step < 1:
            raise ValueError(f"size and prompts_per_step must be positive, but got {size} and {prompts_per_step}")
        self.size = size
        self.prompts_per_step = min(prompts_per_step, size)

    @property
    def steps_per_pass(self) -> int:
        """Optimizer steps in one pass over the buffer."""
        return self.size // self.prompts_per_step

    def collection(self, number: int) -> list[str]:
        """Prompts of the `number`-th collection, counted from 0; trajectory i is sampled from the i-th."""
        return self.batch(number, self.size)

    def step(self, collection: int, pass_index: int, position: int) -> tuple[int, ...]:
        """Trajectories of step `position` of a pass over a collection, all counted from 0; the s-th is of slot s."""
        slots = self.prompts_per_step
        chosen = []
        for slot in range(slots):
            members = range(slot, self.size, slots)
            order = permutation(len(members), self.seed, "pass", collection, pass_index, slot)
            chosen.append(members[order[position]])
        return tuple(chosen)


@lru_cache(maxsize=256)
def permutation(count: int, *key: int | str) -> tuple[int, ...]:
    """A uniformly random order of range(count) that depends on the key only, not on a library's generator."""
    prefix = "/".join(map(str, key))
    return tuple(sorted(range(count), key=lambda i: hashlib.sha256(f"{prefix}/{i}".encode()).digest()))
