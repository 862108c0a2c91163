"""A frozen network in four bits per weight, by bitsandbytes, an optional package.

Source: Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", section 3 (4-bit NormalFloat, double
quantization).
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import nn

from amsd.packages import require_bitsandbytes

BITS = 4.127
"""Per quantized weight: four, and the scale of each block of 64, quantized to eight bits."""


def quantizable(network: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of the blocks that repeat, by name: embeddings and output layers are few and sensitive."""
    return {
        name: layer for name, layer in network.named_modules()
        if type(layer) is nn.Linear and any(part.isdigit() for part in name.split("."))
    }  # fmt: skip


def quantize(network: nn.Module, dtype: torch.dtype) -> None:
    """Put four-bit layers that compute in `dtype` into the place of linear ones; nothing of the network is trained.

    A weight is rounded when it first moves to a device, the CPU included.

    Raises:
        UsageError: bitsandbytes is not installed.
    """
    require_bitsandbytes("model.quantization")
    layers: Any = import_module("bitsandbytes.nn")
    for name, layer in quantizable(network).items():
        small = layers.Linear4bit(
            layer.in_features, layer.out_features, bias=layer.bias is not None, compute_dtype=dtype, quant_type="nf4",
            device="meta",
        )  # fmt: skip
        small.weight = layers.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
        small.bias = layer.bias
        # A CPU's own layout is for inference alone, and for certain widths: gradients would then read it as the other.
        small.support_avx512bf16_for_cpu = False
        parent, _, attribute = name.rpartition(".")
        setattr(network.get_submodule(parent), attribute, small)
    network.is_loaded_in_4bit = True  # type: ignore[assignment]  # what PEFT asks a network
