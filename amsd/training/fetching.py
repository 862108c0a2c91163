"""What a chunk of the loss uses of a buffer in main memory: brought while the chunk before is computed."""

from __future__ import annotations

from typing import Generic, Protocol

import torch
from torch import Tensor

from amsd.training.experience import E
from amsd.training.sources import Batch


class Carrier(Protocol):
    """Brings rows of tensors from main memory to a device."""

    def carry(self, source: Tensor, *index: Tensor) -> Tensor:
        """`source[index]` on the device, from when `arrive` was called with it; returns at once."""
        ...

    def arrive(self, value: Tensor) -> None:
        """What the device is told to do from now on finds `value` there."""
        ...


class SideStream:
    """Gathers rows into pinned memory and copies them on a CUDA stream of its own, beside what computes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def carry(self, source: Tensor, *index: Tensor) -> Tensor:
        """Gathers here, copies on the stream. PyTorch keeps pinned memory for the next call once a copy is done."""
        flat, rows = _flat(source, *index)
        gathered = torch.empty((len(rows), *flat.shape[1:]), dtype=source.dtype, pin_memory=True)
        torch.index_select(flat, 0, rows, out=gathered)
        with torch.cuda.stream(self._stream):
            copied = gathered.to(self._device, non_blocking=True)
        return copied.view(*torch.broadcast_shapes(*(each.shape for each in index)), *source.shape[len(index) :])

    def arrive(self, value: Tensor) -> None:
        """Later work waits on the device for the copies, and their memory is not used again before it is done."""
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        value.record_stream(current)


def _flat(source: Tensor, *index: Tensor) -> tuple[Tensor, Tensor]:
    """`source` (B, ...) or (B, M, ...) with its indexed axes made one, and the rows (R,) of that."""
    if len(index) == 1:
        return source, index[0].flatten()
    rows, columns = index
    return source.flatten(0, 1), (rows * source.shape[1] + columns).flatten()


def carrier_for(device: torch.device) -> Carrier | None:
    """What brings a buffer of main memory to `device`; None where that is main memory itself."""
    return SideStream(device) if device.type == "cuda" else None


class Fetcher(Generic[E]):
    """Gives chunks of a batch to the loss, the next of which is on its way while the present one is computed."""

    def __init__(self, batch: Batch[E], carrier: Carrier | None) -> None:
        """`carrier` is used for a buffer in main memory; without one, chunks are rows of the batch itself."""
        self._batch = batch
        wanted = [*batch.experience.latents(), *batch.experience.conditioning.tensors()]
        self._carrier = carrier if all(value.device.type == "cpu" for _, value in wanted) else None
        self._coming: tuple[slice, E, list[Tensor]] | None = None

    def chunk(self, part: slice) -> tuple[E, Tensor]:
        """Experience and the rows of it that stand for the rows `part` of the batch."""
        if self._carrier is None:
            return self._batch.experience, self._batch.rows[part]
        if self._coming is None or self._coming[0] != part:  # the first one, or of another size than was expected
            self.expect(part)
        assert self._coming is not None
        (_, found, carried), self._coming = self._coming, None
        for value in carried:
            self._carrier.arrive(value)
        return found, torch.arange(len(found))

    def expect(self, part: slice) -> None:
        """Begin to bring the rows `part` of the batch, as far as it has them."""
        rows = self._batch.rows[part]
        carrier = self._carrier
        if carrier is None or not len(rows):
            return
        carried: list[Tensor] = []

        def bring(source: Tensor, *index: Tensor) -> Tensor:
            carried.append(carrier.carry(source, *index))
            return carried[-1]

        found = self._batch.experience.used(rows, self._batch.pass_index, bring)
        self._coming = slice(part.start, part.start + len(rows)), found, carried
