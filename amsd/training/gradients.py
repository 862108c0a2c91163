"""Losses and gradients of one optimizer step, chunk by chunk, whatever the method."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Generic

import torch
from torch import Tensor

from amsd.training import processes
from amsd.training.chunks import from_the_start, micro_batch_size
from amsd.training.experience import E, ItemLosses
from amsd.training.fetching import Fetcher, carrier_for
from amsd.training.method import Method
from amsd.training.problem import remedy, require_finite
from amsd.training.sources import Batch
from amsd.training.update import Updater


@dataclass(frozen=True)
class BatchLosses:
    """Losses of the global batch of one optimizer step, on the CPU."""

    items: ItemLosses
    weights: Tensor
    """Weight of each loss, (M,)."""
    usable: bool
    """Whether every loss is finite: only then do the parameters hold the gradient."""

    @property
    def mean(self) -> float:
        """Mean of the weighted losses."""
        return float((self.items.loss * self.weights).sum() / len(self.weights))


class Gradients(Generic[E]):
    """Takes the gradient of a batch's weighted mean loss in chunks of `optimizer.micro_batch` trajectories.

    The chunks and the number of processes change speed and memory, not the gradient. Where a chunk does not fit into
    memory, the gradient is emptied and taken again in smaller chunks.
    """

    def __init__(self, method: Method[E], updater: Updater) -> None:
        self._method = method
        self._recipe = method.recipe
        self._accelerator = updater.accelerator
        self._guard = updater.guard
        self._empty = updater.optimizer.zero_grad
        self.size = micro_batch_size(method.recipe, method.problem.device.type != "cpu", method.problem.policy.sharded)
        """How many trajectories are in one chunk, as far as it is known."""
        self._carrier = carrier_for(method.problem.device)

    def take(self, batch: Batch[E], step: int) -> BatchLosses:
        """Give the parameters the gradient of the global batch's mean loss: this process's part of it.

        Raises:
            RunError: a loss is not finite, and no more updates may be left out; or a single trajectory does not fit.
        """
        self._empty()  # also where no loss is usable: nothing of the last step may be left
        return (self._whole_batch if self._method.weighs_whole_batch else self._in_one_pass)(batch, step)

    def _in_one_pass(self, batch: Batch[E], step: int) -> BatchLosses:
        """Gradients chunk by chunk, where the weights of a chunk need no other chunk."""
        method = self._method
        chunks = Fetcher(batch, self._carrier)

        def chunk(part: slice) -> ItemLosses:
            found = method.losses(*chunks.chunk(part), batch.pass_index)
            self._backward(found.loss, method.weights(found))
            chunks.expect(self._next(part))
            return ItemLosses(found.loss.detach(), found.logged)

        parts = from_the_start(len(batch.rows), self.size, chunk, self._empty)
        items = gathered(parts, self._recipe.method.items_per_trajectory)
        usable = self._finite(items.loss, batch, step)
        return BatchLosses(items, method.weights(items) if usable else torch.ones_like(items.loss), usable)

    def _whole_batch(self, batch: Batch[E], step: int) -> BatchLosses:
        """The same where weights depend on the whole batch.

        With one chunk its graph is kept; with more, a pass without gradients comes first.
        """
        method, rows, count = self._method, batch.rows, self._recipe.method.items_per_trajectory
        single = max(processes.gather([-(-len(rows) // self.size.next)])) <= 1
        chunks = Fetcher(batch, self._carrier)
        kept: list[ItemLosses] = []
        """The losses with their graph, if all rows fitted at once on every process."""

        def first(part: slice) -> ItemLosses:
            whole = single and part == slice(0, len(rows))
            with nullcontext() if whole else torch.no_grad():
                found = method.losses(*chunks.chunk(part), batch.pass_index)
            if whole:
                kept.append(found)
            chunks.expect(self._next(part))
            return ItemLosses(found.loss.detach(), found.logged)

        items = gathered(from_the_start(len(rows), self.size, first, kept.clear), count)
        if not self._finite(items.loss, batch, step):
            return BatchLosses(items, torch.ones_like(items.loss), False)
        weights = method.weights(items)
        own = weights.view(-1, count)[processes.rank() :: processes.world_size()]

        def second(part: slice) -> None:
            method.only_losses = not kept
            found = kept.pop() if kept else method.losses(*chunks.chunk(part), batch.pass_index)
            self._backward(found.loss, own[part].flatten())
            chunks.expect(self._next(part))

        try:
            from_the_start(len(rows), self.size, second, self._empty)
        finally:
            method.only_losses = False
        return BatchLosses(items, weights, True)

    def _next(self, part: slice) -> slice:
        """The chunk that comes after `part`, if this one fits."""
        return slice(part.stop, part.stop + max(self.size.next, part.stop - part.start))

    def _backward(self, losses: Tensor, weights: Tensor) -> None:
        total = self._recipe.optimizer.prompts_per_step * self._recipe.method.items_per_trajectory
        self._accelerator.backward((losses * weights.to(losses.dtype).to(losses.device)).sum() / total)

    def _finite(self, losses: Tensor, batch: Batch[E], step: int) -> bool:
        """Whether the losses of the global batch (M,) are finite, if not ending the run where none may be left out.

        Every process judges the same values, so that none waits for one that has ended.
        """
        if bool(losses.isfinite().all()):
            return True
        if self._guard.in_a_row >= self._recipe.optimizer.max_skipped_updates:
            count = self._recipe.method.items_per_trajectory
            own = [batch.experience.prompts[row] for row in batch.rows.tolist()]
            prompts = [prompt for prompt in processes.gather(own) for _ in range(count)]
            require_finite(losses, "loss", step, "loss", prompts, remedy(self._recipe))
        return False


def gathered(parts: Sequence[ItemLosses], count: int) -> ItemLosses:
    """Items of all processes, in the order that one process would have; on the CPU.

    Args:
        parts: this process's items, chunk by chunk.
        count: items per trajectory.
    """
    rows: list[dict[str, list[float]]] = []
    for part in parts:
        values = {"": part.loss.detach().float(), **part.logged}
        table = {name: value.view(-1, count).tolist() for name, value in values.items()}
        rows += [{name: table[name][row] for name in table} for row in range(len(table[""]))]
    everything = processes.gather(rows)
    joined = {name: torch.tensor([row[name] for row in everything]).flatten() for name in everything[0]}
    return ItemLosses(joined.pop(""), joined)
