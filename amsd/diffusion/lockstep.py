"""Equal numbers of passes through sharded networks on every process.

Each pass through a sharded network gathers its parameters from all processes, so all of them must make it. But they
have different numbers of passes to make: rows leave the adjoint's batch at different steps, and shares differ by an
image. So processes agree on every pass before they make it: the one who has none to make, because it is elsewhere or
waits for the others to exchange numbers, makes it too and throws the result away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from amsd.diffusion.sharding import first_floating
from amsd.errors import RunError

_NOTHING = 0


class LockStep:
    """Agreement among the processes on each pass through the given networks, which are sharded.

    Args:
        frozen: networks without trained parameters; passes with gradients are differentiated in their input at once.
        trained: networks with trained parameters; with gradients every process makes as many passes by itself.
    """

    def __init__(self, frozen: Sequence[nn.Module], trained: Sequence[nn.Module]) -> None:
        self._networks = [*frozen, *trained]
        self._first_trained = len(frozen)
        # Numbers travel between CPUs, whatever the device: nobody waits for what a GPU still has to do.
        self._group: Any = dist.new_group(backend="gloo")
        self._helping = False
        self._arguments: tuple[tuple[Any, ...], Mapping[str, Any]] | None = None
        for index, network in enumerate(self._networks):
            network.register_forward_pre_hook(partial(self._before, index), prepend=True, with_kwargs=True)

    def _before(self, index: int, network: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Make the passes that others have to make first; returns when it is this one's turn."""
        if self._helping:
            return
        differentiated = torch.is_grad_enabled() and (
            index >= self._first_trained or first_floating([*args, *kwargs.values()]).requires_grad
        )
        self._arguments = tuple(map(_detached, args)), {name: _detached(value) for name, value in kwargs.items()}
        wanted = 1 + index + (len(self._networks) if differentiated else 0)
        while (due := self._agreed(wanted)) != wanted:
            self._help(due)

    def meet(self) -> None:
        """Help the others until nobody has a pass to make; every process calls it before they exchange anything."""
        while (due := self._agreed(_NOTHING)) != _NOTHING:
            self._help(due)

    def _agreed(self, wanted: int) -> int:
        """The pass that all make next: the first, in the order of their numbers, that somebody wants."""
        everyone = [torch.zeros(1, dtype=torch.long) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, torch.tensor([wanted]), group=self._group)
        numbers = [int(each) for each in everyone]
        due = min((number for number in numbers if number != _NOTHING), default=_NOTHING)
        if due > len(self._networks) + self._first_trained and set(numbers) != {due}:
            raise RunError(
                "The processes make different numbers of passes with gradients through the trained network (they "
                f"are at passes {numbers}), and training.fsdp needs equal numbers. Make "
                "optimizer.prompts_per_step a multiple of the number of processes, or set training.fsdp = false."
            )
        return due

    def _help(self, due: int) -> None:
        differentiated, index = divmod(due - 1, len(self._networks))
        if self._arguments is None:
            raise RunError("One process never used a network that the others use. Set training.fsdp = false.")
        args, kwargs = self._arguments
        x = first_floating([*args, *kwargs.values()])
        mine = x.detach().requires_grad_(bool(differentiated))

        self._helping = True
        try:
            with torch.set_grad_enabled(bool(differentiated)):
                output = self._networks[index](
                    *(mine if value is x else value for value in args),
                    **{name: mine if value is x else value for name, value in kwargs.items()},
                )[0]
                if differentiated:
                    torch.autograd.grad(output.float().sum(), mine)
        finally:
            self._helping = False


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value
