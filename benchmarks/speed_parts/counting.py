"""Forward-equivalents, counted where they happen: by hooks on the networks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from amsd.training.problem import ControlProblem


class Counter:
    """Images that went through the networks of a policy: forward 1, a product with the Jacobian 2, a loss step 3.

    A backward pass costs one forward to the input alone, and two to the input and the parameters.
    """

    def __init__(self, problem: ControlProblem) -> None:
        self.total = 0.0
        self._paused = False
        for network in problem.policy.networks:
            network.register_forward_hook(self._note, with_kwargs=True)

    def _note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self._paused:
            return
        result: Tensor = output[0] if isinstance(output, tuple) else output.sample
        rows = len(result)
        self.total += rows
        if result.requires_grad:
            trained = any(parameter.requires_grad for parameter in module.parameters())
            result.register_hook(lambda _: self._add(rows * (2 if trained else 1)))

    def _add(self, count: int) -> None:
        if not self._paused:
            self.total += count

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing is counted inside, such as an evaluation."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False
