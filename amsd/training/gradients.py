"""Losses and gradients of one optimizer step, chunk by chunk, whatever the method."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Generic

import torch
from accelerate import Accelerator
from torch import Tensor

from amsd.training import processes
from amsd.training.experience import E, ItemLosses
from amsd.training.guard import UpdateGuard
from amsd.training.method import Method
from amsd.training.problem import require_finite
from amsd.training.sources import Batch


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

    The chunks and the number of processes change speed and memory, not the gradient.
    """

    def __init__(self, method: Method[E], accelerator: Accelerator, guard: UpdateGuard) -> None:
        self._method = method
        self._recipe = method.recipe
        self._accelerator = accelerator
        self._guard = guard

    def take(self, batch: Batch[E], step: int) -> BatchLosses:
        """Add the gradient of the global batch's mean loss to the parameters: this process's part of it.

        Raises:
            RunError: a loss is not finite, and no more updates may be left out.
        """
        chunks = batch.rows.split(self._recipe.optimizer.micro_batch) if len(batch.rows) else ()
        return (self._whole_batch if self._method.weighs_whole_batch else self._in_one_pass)(batch, chunks, step)

    def _in_one_pass(self, batch: Batch[E], chunks: Sequence[Tensor], step: int) -> BatchLosses:
        """Gradients chunk by chunk, where the weights of a chunk need no other chunk."""
        method, parts = self._method, []
        for rows in chunks:
            part = method.losses(batch.experience, rows, batch.pass_index)
            self._backward(part.loss, method.weights(part))
            parts.append(ItemLosses(part.loss.detach(), part.logged))
        items = gathered(parts, self._recipe.method.items_per_trajectory)
        usable = self._finite(items.loss, batch, step)
        return BatchLosses(items, method.weights(items) if usable else torch.ones_like(items.loss), usable)

    def _whole_batch(self, batch: Batch[E], chunks: Sequence[Tensor], step: int) -> BatchLosses:
        """The same where weights depend on the whole batch.

        With one chunk its graph is kept; with more, a pass without gradients comes first.
        """
        method, count = self._method, self._recipe.method.items_per_trajectory
        single = max(processes.gather([len(chunks)]) or [0]) <= 1
        with nullcontext() if single else torch.no_grad():
            parts = [method.losses(batch.experience, rows, batch.pass_index) for rows in chunks]
        items = gathered(parts, count)
        if not self._finite(items.loss, batch, step):
            return BatchLosses(items, torch.ones_like(items.loss), False)
        weights = method.weights(items)
        own = weights.view(-1, count)[processes.rank() :: processes.world_size()].flatten()
        method.only_losses = not single
        for part, rows, weight in zip(parts, chunks, own.split([len(part.loss) for part in parts]), strict=True):
            again = part if single else method.losses(batch.experience, rows, batch.pass_index)
            self._backward(again.loss, weight)
        method.only_losses = False
        return BatchLosses(items, weights, True)

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
            require_finite(losses, "loss", step, "loss", prompts)
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
