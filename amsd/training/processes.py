"""What the processes of one run exchange: lists of numbers, and the gradients of each optimizer step.

Nothing here depends on how many rows a process holds, so uneven shares cannot deadlock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from amsd.diffusion.sharding import is_sharded
from amsd.ends import AnnouncedEnd, Ends
from amsd.errors import RunError, option
from amsd.reading import is_shortage, reason_of
from amsd.training import heartbeat

T = TypeVar("T")
BUCKET = 2**24
"""Numbers per exchange of gradients: 64 MiB in float32."""


_meetings: list[Callable[[], None]] = []


def before_exchanges(meet: Callable[[], None] | None) -> None:
    """Call `meet` on every process before any of them exchanges numbers; None: nothing any more."""
    _meetings[:] = [] if meet is None else [meet]


_announced: list[Callable[[], int | None]] = []


@contextmanager
def obeying(ends: Ends) -> Iterator[None]:
    """Inside, a signal ends the work: at once in a run of one process, of several on all of them at the same place.

    That place is the next piece of `interruptible` work.
    """
    if world_size() == 1:
        with ends.at_once():
            yield
        return
    with ends.held():
        _announced.append(lambda: ends.number)
        try:
            yield
        finally:
            _announced.pop()


@contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """Yields what every process calls before each piece of its share, however many pieces the others have.

    Raises:
        AnnouncedEnd: on all processes, if a signal came to any of them (see `obeying`).
    """
    if not _announced:
        yield lambda: None
        return

    def meet(done: bool) -> bool:
        said = gather([(_announced[-1]() or 0, done)])
        number = max(each for each, _ in said)
        if number:
            raise AnnouncedEnd(number)
        return all(each for _, each in said)

    def look() -> None:
        meet(False)

    yield look
    while not meet(True):
        pass


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def exchanging() -> Iterator[None]:
    """Inside, numbers travel between processes; where one of them is gone, that is said, and which one.

    Raises:
        RunError: the exchange failed.
    """
    try:
        yield
    except RuntimeError as error:  # of the backend: gloo's and NCCL's
        if is_shortage(error):
            raise
        gone = heartbeat.missing() or "Another process of this run"
        raise RunError(
            f"{gone} ended while this process waited for it ({reason_of(error)}). Its last message says why. "
            f"Continue with {option('resume', 'resume=True')}."
        ) from error


def rank() -> int:
    """Index of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def shard(items: Sequence[T]) -> list[T]:
    """This process's share of a global list: every world_size-th item."""
    return list(items[rank() :: world_size()])


def gather(values: Sequence[T]) -> list[T]:
    """All processes' shares of a list, put back into the global order of `shard`."""
    for meet in _meetings:
        meet()
    if world_size() == 1:
        return list(values)
    parts: list[Any] = [None] * world_size()
    with exchanging():
        dist.all_gather_object(parts, list(values))
    total = sum(map(len, parts))
    merged: list[Any] = [None] * total
    for index, part in enumerate(parts):
        merged[index :: world_size()] = part
    return merged


def gather_rows(value: Tensor) -> Tensor:
    """`gather` for the rows of a tensor (b, ...); the result (B, ...) is on the CPU."""
    return torch.tensor(gather(value.detach().cpu().tolist()), dtype=value.dtype)


def sum_gradients(parameters: Iterable[nn.Parameter], bucket: int = BUCKET) -> None:
    """Replace each gradient by its sum over all processes, in exchanges of at most `bucket` numbers or one tensor.

    Those of sharded parameters are summed already, as they were computed.
    Buckets hold gradients of one dtype and device, so no second copy of the whole gradient is ever in memory.
    """
    parameters = list(parameters)
    for parameter in parameters:
        if parameter.grad is None:  # a process without rows this step
            parameter.grad = torch.zeros_like(parameter)
    if world_size() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None and not is_sharded(p)]
    for part in _buckets(gradients, bucket):
        flat = torch.cat([gradient.flatten() for gradient in part])
        with exchanging():
            dist.all_reduce(flat)
        for gradient, summed in zip(part, flat.split([g.numel() for g in part]), strict=True):
            gradient.copy_(summed.view_as(gradient))


def _buckets(gradients: Sequence[Tensor], size: int) -> Iterator[list[Tensor]]:
    """Consecutive gradients of one dtype and device, together at most `size` numbers; a larger one stands alone."""
    part: list[Tensor] = []
    for gradient in gradients:
        full = sum(other.numel() for other in part) + gradient.numel() > size
        if part and (full or (part[0].dtype, part[0].device) != (gradient.dtype, gradient.device)):
            yield part
            part = []
        part.append(gradient)
    if part:
        yield part


def share_from_main(parameters: Iterable[nn.Parameter]) -> None:
    """Give every process the main process's values: what was drawn at random must not differ between them."""
    if world_size() == 1:
        return
    for parameter in parameters:
        if not is_sharded(parameter):
            with exchanging():
                dist.broadcast(parameter.data, src=0)
