"""Copies of a trained network for passes without gradients, with weights that are cast or merged once.

Autocast casts float32 weights anew at every call, and adapters add small products to every layer: a rollout of N steps
pays for both N times, though its weights do not change. A copy shares whatever is frozen with the trained network.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class HeldCopy(ABC):
    """A network without gradients, equal to the trained one each time it was refreshed."""

    network: nn.Module

    @abstractmethod
    def refresh(self) -> None:
        """Take over the trained weights as they are now."""


class CastCopy(HeldCopy):
    """All weights are copied, those of matrix products in half precision: what autocast makes of them, bit for bit."""

    def __init__(self, trained: nn.Module, dtype: torch.dtype) -> None:
        self._trained = trained
        self.network = cast_copy(trained, dtype).requires_grad_(False)

    @torch.no_grad()
    def refresh(self) -> None:
        """Round every weight once."""
        _copy_all(self.network.parameters(), self._trained.parameters())


class AdapterCopy(HeldCopy):
    """Frozen weights are shared; only the adapters are copied, in half precision.

    They are not merged: next to a weight of 8 significant bits most of a small update would be rounded away, and the
    sampler would be another policy than the one in the loss.
    """

    def __init__(self, trained: nn.Module, dtype: torch.dtype) -> None:
        self._trained = _trainable(trained)
        self.network = _sharing_copy(trained, []).requires_grad_(False)
        named = dict(self.network.named_parameters())
        self._copies = [named[name] for name in self._trained]
        for value in self._copies:
            value.data = value.data.to(dtype)

    @torch.no_grad()
    def refresh(self) -> None:
        """Round the adapters once."""
        _copy_all(self._copies, self._trained.values())


class MergedCopy(HeldCopy):
    """Frozen weights are shared; the layers with adapters become plain layers whose weights contain them (float32)."""

    def __init__(self, trained: nn.Module) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer

        self._layers: dict[str, Any] = {
            name: layer for name, layer in trained.named_modules() if isinstance(layer, BaseTunerLayer)
        }
        self.network = _sharing_copy(trained, list(self._layers.values()))
        self._merged: dict[str, nn.Module] = {}
        for name, layer in self._layers.items():
            plain = copy.deepcopy(layer.get_base_layer())
            self._merged[name] = plain
            parent, _, attribute = name.rpartition(".")
            setattr(self.network.get_submodule(parent), attribute, plain)
        self.network.requires_grad_(False)

    @torch.no_grad()
    def refresh(self) -> None:
        """Add alpha / rank times B A to the frozen weight of every layer with an adapter."""
        for name, layer in self._layers.items():
            weight: Any = self._merged[name].weight
            torch.add(layer.get_base_layer().weight, layer.get_delta_weight("default"), out=weight)


def cast_copy(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy with in `dtype` what autocast casts at every call anyway.

    Normalization weights stay float32 as in the trained network: rounded, they would make it another function.
    """
    twin = copy.deepcopy(network)
    for module in twin.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(dtype)
    return twin


def _copy_all(targets: Iterable[Tensor], sources: Iterable[Tensor]) -> None:
    torch._foreach_copy_(list(targets), list(sources))


def _trainable(network: nn.Module) -> Mapping[str, nn.Parameter]:
    return {name: value for name, value in network.named_parameters() if value.requires_grad}


def _sharing_copy(network: nn.Module, left_out: list[nn.Module]) -> nn.Module:
    """A copy that shares frozen parameters, buffers and the modules `left_out` with the original."""
    shared: list[Any] = [value for value in network.parameters() if not value.requires_grad]
    shared += [*network.buffers(), *left_out]
    return copy.deepcopy(network, {id(value): value for value in shared})


def channels_last(network: nn.Module) -> None:
    """Lay the frozen convolution weights out as tensor cores read them; trained ones are saved, so they stay."""
    for value in network.parameters():
        if not value.requires_grad and value.ndim == 4:
            value.data = value.data.contiguous(memory_format=torch.channels_last)
