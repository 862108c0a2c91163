"""What a pass through a network keeps for its way back, counted on shapes alone (PyTorch's meta device)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from amsd.diffusion.families.base import Family
from amsd.diffusion.held import compute_in


class _Attention(torch.autograd.Function):
    """Attention as a GPU has it: it keeps its inputs, its output and a number per row, never the matrix of weights."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Output (B, heads, L, D) without values."""
        output = query.new_empty((*query.shape[:-1], value.shape[-1]))
        rows = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, output, rows)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Nothing is differentiated here."""
        raise NotImplementedError


class _AsOnGPU(TorchFunctionMode):
    """Inside the block attention keeps what it keeps on a GPU."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call `func`, or what stands in its place."""
        kwargs = dict(kwargs or {})
        if func is functional.scaled_dot_product_attention:
            given = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
            return _Attention.apply(given["query"], given["key"], given["value"])
        return func(*args, **kwargs)


def kept_bytes(family: Family, denoiser: nn.Module, dtype: torch.dtype) -> int:
    """Bytes that one forward pass for one picture keeps for the product with its Jacobian, without weights.

    `denoiser` lies on the meta device; a frozen copy of it is called as `family` calls it, in precision `dtype`.
    """
    kept: dict[int, Any] = {}

    def keep(value: Tensor) -> Tensor:
        kept[id(value.untyped_storage())] = value.untyped_storage()  # held, so that no other takes its place
        return value

    x = torch.empty(1, *family.latent_shape, device="meta", requires_grad=True)
    network = compute_in(copy.deepcopy(denoiser), dtype).requires_grad_(False)
    weights = {id(each.untyped_storage()) for each in (*network.parameters(), *network.buffers())}
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value), _AsOnGPU():
        family.network(network)(x, torch.zeros(1, device="meta"), family.blank_condition("meta"))
    return sum(storage.nbytes() for key, storage in kept.items() if key not in weights)
