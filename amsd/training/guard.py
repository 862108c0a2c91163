"""What keeps numbers that are not finite out of the weights, the optimizer's state and the checkpoints."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from amsd.diffusion.sharding import is_sharded, whole
from amsd.errors import RunError

#: Updates in a row that fp16's loss scaling may leave out: it halves a scale of 65536 each time.
SCALING_PATIENCE = 24
_HINT = (
    "Nothing of this step was kept: the newest checkpoint is the last good state. Start a new run with a lower "
    "optimizer.learning_rate or method.reward_multiplier, or in fp32."
)


class UpdateGuard:
    """Admits updates whose gradient is finite; others end the run, or are left out as often as the recipe allows."""

    def __init__(self, patience: int) -> None:
        """`patience` updates in a row may be left out."""
        self.patience = patience
        self.in_a_row = 0
        """How many were left out since the last one that was made."""

    def admits(self, norm: float, step: int) -> bool:
        """Whether the update of optimizer step `step`, with a gradient of this norm, is to be made.

        Raises:
            RunError: the norm is not finite, and no more updates may be left out.
        """
        if math.isfinite(norm):
            self.in_a_row = 0
            return True
        self.in_a_row += 1
        if self.in_a_row > self.patience:
            before = f", like {self.in_a_row - 1} before it" if self.in_a_row > 1 else ""
            raise RunError(f"Step {step}, phase optimizer: the norm of the gradient is {norm}{before}. {_HINT}")
        return False


def take_step(optimizer: torch.optim.Optimizer, step: int) -> None:
    """Make the update of optimizer step `step`.

    Raises:
        RunError: the learning rate is too large for float32.
    """
    try:
        optimizer.step()
    except RuntimeError as error:
        if "without overflow" not in str(error):
            raise
        raise RunError(f"Step {step}, phase optimizer: the update is not finite in float32. {_HINT}") from error


def require_finite_weights(named: Mapping[str, Tensor], step: int, what: str) -> None:
    """Check tensors that a step changed, with one reduction over all of them.

    A tensor whose norm overflows float32 is refused too: no network computes with such weights.

    Raises:
        RunError: names those that are not finite.
    """
    if not named or math.isfinite(_total_norm([value.detach() for value in named.values()])):
        return
    bad = [name for name, value in named.items() if not math.isfinite(float(whole(value.detach().double().norm())))]
    shown = ", ".join(bad[:3]) or "their norm is too large"
    raise RunError(f"Step {step}: the {what} are not finite after the update ({shown}). {_HINT}")


def _total_norm(values: Sequence[Tensor]) -> float:
    """Norm of all tensors together; sharded ones and others cannot be in one reduction."""
    parts = [[value for value in values if is_sharded(value) is sharded] for sharded in (True, False)]
    return math.hypot(*(float(whole(get_total_norm(part))) for part in parts if part))


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """Floating-point state of an optimizer by name, such as `0.exp_avg`."""
    for index, entries in enumerate(optimizer.state.values()):
        for name, value in entries.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                yield f"{index}.{name}", value
