"""Copies of a trained network that compute in its place, with weights that are cast or merged once.

Trained weights are float32. In half precision autocast would cast them anew at every call, and compute normalizations
in float32: on an H100 a pass of Stable Diffusion 1.5's UNet takes a third longer so (docs/performance.md). Adapters add
small products to every layer. A copy shares whatever is frozen with the trained network.
"""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor, nn

N = TypeVar("N", bound=nn.Module)

_STATES_AND_TEXT = frozenset(
    {"sample", "hidden_states", "encoder_hidden_states", "pooled_projections", "added_cond_kwargs", "text_embeds"}
)
"""Inputs of diffusers' denoisers that are computed with; the others are times, sizes and places."""

_FURTHER_BLOCKS = ("ResnetBlock2D",)
"""Blocks that are worth compiling beside those that diffusers names (`_repeated_blocks`): their normalizations are."""
_COMPILED_SHAPES = 64


class HeldCopy(ABC):
    """A network that equals the trained one each time it was refreshed."""

    network: nn.Module
    differentiable: ClassVar[bool] = False
    """Whether gradients of passes through the copy reach the trained weights."""

    @abstractmethod
    def refresh(self) -> None:
        """Take over the trained weights as they are now."""


class HalfCopy(HeldCopy):
    """The trained network as it computes in half precision: trained weights are copied, what is frozen is shared.

    Gradients of the copy are added to those of the trained weights, in float32, as soon as there are any. Adapters are
    not merged: next to a weight of 8 significant bits most of a small update would be rounded away, and the sampler
    would be another policy than the one in the loss.
    """

    differentiable = True

    def __init__(self, trained: nn.Module, dtype: torch.dtype) -> None:
        self._masters = [value for value in trained.parameters() if value.requires_grad]
        halves: dict[int, Any] = {id(value): nn.Parameter(value.detach().to(dtype)) for value in self._masters}
        self._copies = [halves[id(value)] for value in self._masters]
        for master, copied in zip(self._masters, self._copies, strict=True):
            copied.register_post_accumulate_grad_hook(partial(_hand_over, master))
        self.network = _sharing_copy(trained, [], halves)
        cast_inputs(self.network, dtype)

    @torch.no_grad()
    def refresh(self) -> None:
        """Round every trained weight once."""
        # Not in place for autograd: a graph that is waiting for its backward pass holds the same values.
        torch._foreach_copy_([value.data for value in self._copies], [value.data for value in self._masters])


def _hand_over(master: nn.Parameter, copied: Tensor) -> None:
    gradient = cast(Tensor, copied.grad)
    copied.grad = None
    if master.grad is None:
        master.grad = gradient.to(master.dtype)
    else:
        master.grad += gradient


class MergedCopy(HeldCopy):
    """Frozen weights are shared; the layers with adapters become plain layers whose weights contain them (float32).

    For passes without gradients.
    """

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


def compute_in(network: N, dtype: torch.dtype) -> N:
    """Let a network compute in `dtype`, as plain diffusers does: its parameters are cast, and the inputs of each call.

    Buffers stay as they are (position tables: diffusers casts what comes out of them).
    """
    for value in network.parameters():
        if value.is_floating_point():
            value.data = value.data.to(dtype)
    cast_inputs(network, dtype)
    return network


def cast_inputs(network: nn.Module, dtype: torch.dtype) -> None:
    """Cast states and text to `dtype` at each call. Times stay as they are: half precision would move them."""
    if dtype is not torch.float32 and not any(isinstance(each, _Cast) for each in network._forward_pre_hooks.values()):
        network.register_forward_pre_hook(_Cast(network, dtype), with_kwargs=True)


def compile_blocks(network: nn.Module) -> None:
    """Compile the blocks that a network repeats, each by itself: a tenth of the time that the whole takes.

    A block of another width, and a batch of another size, is compiled anew: there are more of them in one network than
    PyTorch allows by default before it gives up.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _COMPILED_SHAPES)
    named = {*(getattr(network, "_repeated_blocks", None) or ()), *_FURTHER_BLOCKS}
    for module in network.modules():
        if type(module).__name__ in named:
            module.compile()


class _Cast:
    """The hook of `cast_inputs`."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        self._names = list(inspect.signature(network.forward).parameters)
        self._dtype = dtype

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        given = tuple(self._cast(name, value) for name, value in zip(self._names, args, strict=False))
        return given, {name: self._cast(name, value) for name, value in kwargs.items()}

    def _cast(self, name: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: self._cast(key, each) for key, each in value.items()}
        return value.to(self._dtype) if name in _STATES_AND_TEXT and isinstance(value, Tensor) else value


def _sharing_copy(
    network: nn.Module, left_out: list[nn.Module], instead: Mapping[int, Any] = MappingProxyType({})
) -> nn.Module:
    """A copy that shares frozen parameters, buffers and the modules `left_out` with the original.

    Args:
        instead: what stands in the place of other parts, by the `id` of the part.
    """
    shared: list[Any] = [value for value in network.parameters() if not value.requires_grad]
    shared += [*network.buffers(), *left_out]
    return copy.deepcopy(network, {id(value): value for value in shared} | dict(instead))
