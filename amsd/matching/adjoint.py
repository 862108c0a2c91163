"""The lean adjoint (Adjoint Matching paper, eq. 38 and 39; docs/method.md section 3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

BasePrediction = Callable[[Tensor, int, Tensor], Tensor]
"""eps_0(x (b, ...), k, rows (b,)) -> (b, ...), differentiable in x; `rows` says which of the batch these are."""


@dataclass(frozen=True)
class LeanAdjoint:
    """Adjoints and the base predictions that were computed on the way."""

    adjoints: Tensor
    """a_0 ... a_N, (B, N + 1, ...); NaN where the recursion was not needed."""
    base_predictions: Tensor
    """eps_0(x_k) of the steps that were differentiated, (B, N, ...); NaN elsewhere."""


def lean_adjoint(
    terminal: Tensor, states: Tensor, A: Tensor, B: Tensor, base_prediction: BasePrediction, lowest: Tensor
) -> LeanAdjoint:
    """a_k = A_k a_{k+1} + B_k J(x_k)^T a_{k+1} backwards from a_N = `terminal` (B, ...), J = d eps_0 / d x.

    Each row stops at its own index `lowest` (B,), 0 <= lowest <= N: rows that have arrived leave the batch, so a
    row costs N - lowest vector-Jacobian products. `states` is (B, N + 1, ...); `A` and `B` are tables (N,).
    """
    count = len(A)
    adjoints = torch.full_like(states, torch.nan)
    predictions = torch.full_like(states[:, 1:], torch.nan)
    adjoints[:, count] = terminal
    for k, rows in _remaining(lowest, count, states.device):
        x = states[rows, k].detach().requires_grad_(True)
        after = adjoints[rows, k + 1]
        with torch.enable_grad():
            epsilon = base_prediction(x, k, rows)
        product = vector_jacobian_product(epsilon, x, after)
        adjoints[rows, k] = float(A[k]) * after + float(B[k]) * product
        predictions[rows, k] = epsilon.detach().to(predictions.dtype)
    return LeanAdjoint(adjoints, predictions)


def _remaining(lowest: Tensor, count: int, device: torch.device) -> list[tuple[int, Tensor]]:
    """The steps k, last first, with the rows that are not there yet; copied to the device once, not in the loop."""
    steps = list(range(count - 1, int(lowest.min()) - 1, -1))
    rows = [torch.nonzero(lowest <= k).flatten() for k in steps]
    if not rows:
        return []
    together = torch.cat(rows).to(device)
    return list(zip(steps, together.split([len(each) for each in rows]), strict=True))


def vector_jacobian_product(output: Tensor, x: Tensor, vector: Tensor) -> Tensor:
    """The vector-Jacobian product J^T `vector` (b, ...), rows scaled to magnitude 1 on the way through float16.

    Products are linear, so the scale comes out again; adjoints beyond 65504 would be infinite in float16.
    """
    if output.dtype != torch.float16:
        (product,) = torch.autograd.grad(output, x, grad_outputs=vector.to(output.dtype))
        return product
    scale = vector.abs().flatten(1).amax(1).clamp(min=torch.finfo(vector.dtype).tiny)
    scale = scale.view(-1, *[1] * (vector.ndim - 1))
    (product,) = torch.autograd.grad(output, x, grad_outputs=(vector / scale).to(output.dtype))
    return product * scale
