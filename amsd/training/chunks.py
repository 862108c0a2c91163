"""How many trajectories are collected at once: as given, or as many as memory allows.

Every process decides for itself, and nothing is exchanged here, so sizes may differ between processes. Only sharded
networks are collected in chunks of one size: a process that ran out of memory would leave the others waiting.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from amsd.errors import RunError
from amsd.recipe import Recipe

_LOG = logging.getLogger(__name__)

#: Forms of the error that accelerate does not know.
_SHORTAGES = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")

T = TypeVar("T")
R = TypeVar("R")


class ChunkSize:
    """How many trajectories to try at once, learned from what fitted into memory and what did not."""

    def __init__(self, first: int, limit: int | None, fixed: bool = False) -> None:
        """`first` are tried first, and never more than `limit` (None: no limit); `fixed`: never fewer either."""
        self.fixed = fixed
        self.largest = 0
        """The most that fitted at once so far."""
        self._first = first
        self._limit = limit
        self._failed: int | None = None

    @property
    def next(self) -> int:
        """Doubled until something does not fit, then half way between the largest success and the failure.

        Half way only while the gap is wide: a failure costs the time of the rollouts that it loses.
        """
        if self._failed is None:
            grown = max(self._first, 2 * self.largest)
            return grown if self._limit is None else min(grown, self._limit)
        narrow = self._failed - self.largest <= max(1, self.largest // 4)
        return self.largest if narrow else (self.largest + self._failed) // 2

    def fitted(self, count: int) -> None:
        """`count` were collected at once."""
        self.largest = max(self.largest, count)

    def failed(self, count: int) -> None:
        """`count` did not fit; at least 2."""
        self._failed = count
        if self.largest >= count:  # memory is shorter than it was
            self.largest = 0


def chunk_size(recipe: Recipe, on_accelerator: bool, sharded: bool = False) -> ChunkSize:
    """What `training.collection_batch` says for this process: a largest number, or `auto`.

    `auto` starts from the micro-batch. On an accelerator it grows until memory is full. A CPU that runs out of memory
    gives no error to catch: the system ends the process. So there it never has more rows in the network than the loss,
    which keeps activations for micro_batch x K of them anyway; the adjoint keeps one per trajectory, or two where its
    base drift is guided. With gradient checkpointing the loss keeps few activations, but the adjoint keeps all of the
    base's: there it is one trajectory. With sharded networks `auto` is the micro-batch.
    """
    size, micro_batch = recipe.training.collection_batch, recipe.optimizer.micro_batch
    if sharded:
        size = micro_batch if size == "auto" else size
        return ChunkSize(size, size, fixed=True)
    if size != "auto":
        return ChunkSize(size, size)
    if on_accelerator:
        return ChunkSize(micro_batch, None)
    rows = 2 if recipe.guidance.guidance_in_adjoint_computation else 1
    limit = max(1, micro_batch * recipe.method.items_per_trajectory // rows)
    if recipe.training.gradient_checkpointing:
        limit = 1
    return ChunkSize(limit, limit)


def in_chunks(items: Sequence[T], size: ChunkSize, work: Callable[[Sequence[T]], R]) -> list[R]:
    """`work` on consecutive chunks of `items`; a chunk that does not fit into memory is done again in smaller ones.

    What was done before stays.

    Raises:
        RunError: a single item does not fit.
    """
    done: list[R] = []
    start = 0
    while start < len(items):
        chunk = items[start : start + size.next]
        shortage = None
        try:
            done.append(work(chunk))
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            shortage = str(error)  # not the error itself: its frames hold what the attempt had allocated
        if shortage is None:
            size.fitted(len(chunk))
            start += len(chunk)
        else:
            _make_smaller(size, len(chunk), shortage)
    return done


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says, in any of its forms, that memory was short."""
    if isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error):
        return True
    return any(text in str(error) for text in _SHORTAGES)


def _make_smaller(size: ChunkSize, count: int, shortage: str) -> None:
    clear_device_cache(garbage_collection=True)
    if count == 1 or size.fixed:
        single = "a single trajectory was collected" if count == 1 else f"{count} trajectories were collected"
        smaller = "" if count == 1 else " training.collection_batch = 1,"
        raise RunError(
            f"Out of memory while {single}. Set{smaller} training.gradient_checkpointing = true, "
            'model.precision = "bf16" or model.parameterization = "lora", or use a smaller model. '
            f"What was said: {shortage}"
        )
    size.failed(count)
    _LOG.warning(
        "Collecting %d trajectories at once does not fit into memory; trying %d. (%s)", count, size.next, shortage
    )
