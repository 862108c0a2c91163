"""How many trajectories (or pictures) are worked on at once: as given, or as many as memory allows.

Every process decides for itself, and nothing is exchanged here, so sizes may differ between processes. Only sharded
networks are collected in chunks of one size: a process that ran out of memory would leave the others waiting.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from amsd.errors import RunError
from amsd.reading import is_shortage
from amsd.recipe import Recipe

_LOG = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Work:
    """What is done in chunks, for messages."""

    one: str
    """Such as "a single trajectory was collected"."""
    many: str
    """Such as "Collecting {count} trajectories at once"."""
    way_out: str


_SMALLER = (
    'Set training.gradient_checkpointing = true, model.precision = "bf16" or model.parameterization = "lora", or use a '
    "smaller model."
)
COLLECTION = Work("a single trajectory was collected", "Collecting {count} trajectories at once", _SMALLER)
LOSS = Work(
    "the loss of a single trajectory was computed", "The loss of {count} trajectories at once",
    f"Lower method.timesteps_per_trajectory. {_SMALLER}",
)  # fmt: skip
PICTURES = Work(
    "a single picture was drawn", "Drawing {count} pictures at once",
    'Set model.precision = "bf16" or model.vae_tiling = true, or a smaller model.size.',
)  # fmt: skip
REWARD = Work("the reward of a single picture was computed", "The reward of {count} pictures at once", _SMALLER)
VALIDATION = Work(
    "a single trajectory was validated", "Validating {count} trajectories at once",
    f"Set training.validate_every = 0. {_SMALLER}",
)  # fmt: skip
SCALE = Work("the spread of a reward was measured on a single picture", "Measuring it on {count} at once", _SMALLER)
SCORING = Work(
    "a single picture was scored", "Scoring {count} pictures at once",
    "Leave the largest scorers out of evaluation.metrics, evaluation.diversity and evaluation.distance, and score "
    "checkpoints with `amsd eval` on a larger device.",
)  # fmt: skip
DEFAULT_MICRO_BATCH = 5
"""Trajectories in the loss where nothing says how many: on a CPU, which gives no error when its memory is short."""
DEFAULT_PICTURES = 8
"""Pictures that an evaluation draws at once where nothing says how many."""


class ChunkSize:
    """How many to try at once, learned from what fitted into memory and what did not."""

    def __init__(
        self, first: int, limit: int | None, work: Work = COLLECTION, fixed: bool = False, inner: bool = False
    ) -> None:
        """`first` are tried first, and never more than `limit` (None: no limit); `fixed`: never fewer either.

        `inner`: where a single one does not fit, the work around this one may still be done in smaller parts, so the
        lack of memory is passed on.
        """
        self.work = work
        self.fixed = fixed
        self.inner = inner
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

    @property
    def is_cut(self) -> bool:
        """Whether something did not fit."""
        return self._failed is not None

    def failed(self, count: int) -> None:
        """`count` did not fit; at least 2."""
        self._failed = count
        if self.largest >= count:  # memory is shorter than it was
            self.largest = 0


def chunk_size(recipe: Recipe, on_accelerator: bool, sharded: bool = False) -> ChunkSize:
    """What `training.collection_batch` says for this process: a largest number, or `auto`.

    `auto` starts from the micro-batch. On an accelerator it grows until memory is full. A CPU that runs out of memory
    gives no error to catch: the system ends the process. So there it never has more rows in the network than the loss,
    which keeps activations for micro_batch x K of them anyway; an adjoint keeps one per trajectory, or two where its
    base drift is guided. With gradient checkpointing the loss keeps few activations, but an adjoint keeps all of the
    base's: a method that has one collects one trajectory at a time. With sharded networks `auto` is the micro-batch.
    """
    size, micro_batch = recipe.training.collection_batch, fixed_micro_batch(recipe)
    if sharded:
        size = micro_batch if size == "auto" else size
        return ChunkSize(size, size, fixed=True)
    if size != "auto":
        return ChunkSize(size, size)
    if on_accelerator:
        return ChunkSize(micro_batch, None)
    rows = recipe.method.adjoint_rows(recipe)
    limit = max(1, micro_batch * recipe.method.items_per_trajectory // max(1, rows))
    if recipe.training.gradient_checkpointing and rows:
        limit = 1
    return ChunkSize(limit, limit)


def fixed_micro_batch(recipe: Recipe) -> int:
    """Trajectories at once where memory is not asked: `optimizer.micro_batch`, or its default for `auto`."""
    size = recipe.optimizer.micro_batch
    return DEFAULT_MICRO_BATCH if size == "auto" else size


def micro_batch_size(recipe: Recipe, on_accelerator: bool, sharded: bool = False) -> ChunkSize:
    """What `optimizer.micro_batch` says for the loss of this process; with sharded networks `auto` is 5."""
    size = recipe.optimizer.micro_batch
    if sharded:
        size = fixed_micro_batch(recipe)
        return ChunkSize(size, size, LOSS, fixed=True)
    if size == "auto":
        return ChunkSize(DEFAULT_MICRO_BATCH, None if on_accelerator else DEFAULT_MICRO_BATCH, LOSS)
    return ChunkSize(size, size, LOSS)


def picture_size(recipe: Recipe, on_accelerator: bool) -> ChunkSize:
    """What `evaluation.batch_size` says for the pictures of this process."""
    size = recipe.evaluation.batch_size
    if size == "auto":
        return ChunkSize(DEFAULT_PICTURES, None if on_accelerator else DEFAULT_PICTURES, PICTURES)
    return ChunkSize(size, size, PICTURES)


def from_the_start(count: int, size: ChunkSize, work: Callable[[slice], R], begin: Callable[[], None]) -> list[R]:
    """`work` on consecutive slices of `count` things, after `begin`; all of it again where one does not fit.

    For work that leaves something behind when it fails in the middle, such as a part of a gradient.

    Raises:
        RunError: a single item does not fit.
    """
    while True:
        begin()
        done: list[R] = []
        start = 0
        while start < count:
            tried = min(size.next, count - start)
            found = _attempt(partial(work, slice(start, start + tried)))
            if isinstance(found, _Shortage):
                done.clear()  # what it holds is in the way of the next attempt
                _make_smaller(size, tried, found)
                break
            done.append(found)
            size.fitted(tried)
            start += tried
        else:
            return done


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
        found = _attempt(partial(work, chunk))
        if isinstance(found, _Shortage):
            _make_smaller(size, len(chunk), found)
        else:
            done.append(found)
            size.fitted(len(chunk))
            start += len(chunk)
    return done


@dataclass(frozen=True)
class _Shortage:
    """That memory was short, in the words of PyTorch."""

    text: str


def _attempt(work: Callable[[], R]) -> R | _Shortage:
    """What `work` returns, or that it found too little memory; not the error, whose frames hold what was allocated."""
    try:
        return work()
    except RuntimeError as error:
        if is_shortage(error) or should_reduce_batch_size(error):
            return _Shortage(str(error))
        raise


def _make_smaller(size: ChunkSize, count: int, shortage: _Shortage) -> None:
    clear_device_cache(garbage_collection=True)
    if count == 1 and size.inner:
        raise torch.OutOfMemoryError(shortage.text)
    if count == 1 or size.fixed:
        what = f"while {size.work.one}"
        if count > 1:  # sharded networks: all processes make the same calls, so none can try less by itself
            what = (
                f"({size.work.many.format(count=count)}); set optimizer.micro_batch and training.collection_batch to 1"
            )
        raise RunError(f"Out of memory {what}. {size.work.way_out} PyTorch said: {shortage.text}")
    size.failed(count)
    what = size.work.many.format(count=count)
    _LOG.warning("%s does not fit into memory; trying %d. (%s)", what, size.next, shortage.text)
