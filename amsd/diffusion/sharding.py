"""Networks whose parameters are divided among the processes of a run (FSDP2): wrapping, and whole values in and out.

A sharded parameter is a `DTensor`: this process's rows of it, and where the others are. Everything else in the project
sees whole tensors: checkpoints are written from them and read into them, so that they fit any number of processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from amsd.files import Writes, write_nothing


def is_sharded(value: Tensor) -> bool:
    """Whether a tensor is divided among processes."""
    if not dist.is_initialized():
        return False  # the import below takes a while
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)


def whole(value: Tensor) -> Tensor:
    """A tensor with all its rows; every process calls it where the tensor is sharded."""
    return value.full_tensor() if is_sharded(value) else value  # type: ignore[attr-defined]


def placed(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor as `like` is stored: this process's part of it where `like` is sharded."""
    if not is_sharded(like) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    target: Any = like
    # Every process has the whole tensor already, so nothing is sent.
    return distribute_tensor(value.to(like.device), target.device_mesh, target.placements, src_data_rank=None)


def gathered(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of whole tensors in the main process's memory, one at a time; nothing elsewhere. Every process calls it.

    What training changes afterwards does not change them.
    """
    main = not dist.is_initialized() or dist.get_rank() == 0
    found = {}
    for name, value in named.items():
        if main or is_sharded(value):
            full = whole(value.detach())
            if main:
                found[name] = full.to("cpu", copy=True).contiguous()
    return found


def network_as_it_is(network: nn.Module) -> Writes:
    """What writes the folder of a diffusers network with its values as they are now.

    Every process calls it where the network is sharded, and what it returns writes on the main process.
    """
    state = gathered(network.state_dict())
    if not state:
        return write_nothing
    kind = unsharded_class(network) if any(map(is_sharded, network.parameters())) else type(network)
    # A network that has the values for its state: building another one would draw random weights first.
    still = object.__new__(kind)
    still.__dict__.update(network.__dict__, state_dict=lambda: state)
    writes: Writes = still.save_pretrained
    return writes


def unsharded_class(network: nn.Module) -> Any:
    """The class of a network before it was sharded: sharding puts a subclass of another name in its place."""
    from torch.distributed.fsdp import FSDPModule

    return next(each for each in type(network).__mro__ if not issubclass(each, FSDPModule))


def load_state(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy whole tensors into a network, sharded or not."""
    own = network.state_dict()
    network.load_state_dict({name: placed(value, own[name]) for name, value in state.items()})


def mixed_precision(dtype: torch.dtype) -> Any:
    """Parameters travel and compute in `dtype`; their gradients are summed in float32."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    return MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)


def shard(network: nn.Module, dtype: torch.dtype) -> None:
    """Divide a network among the processes, block by block, where it lies (`torch.distributed.fsdp.fully_shard`)."""
    from torch.distributed.fsdp import fully_shard

    names, precision = block_classes(network), mixed_precision(dtype)
    for module in reversed(list(network.modules())):  # children before their parents
        if type(module).__name__ in names and module is not network:
            fully_shard(module, mp_policy=precision)
    fully_shard(network, mp_policy=precision)


def block_classes(network: nn.Module) -> list[str]:
    """Classes of the blocks of a network: those that diffusers says must not be split, as far as it has them."""
    named = set(getattr(network, "_no_split_modules", None) or ())
    return sorted(named & {type(module).__name__ for module in network.modules()})


def sum_and_let_go(network: nn.Module) -> None:
    """Make a sharded network sum its gradients over the processes, and keep no whole parameter after a pass.

    Losses are divided by the global batch, so their gradients add up. A root that kept its whole parameters after a
    pass without gradients would compute with old ones once an average or a checkpoint takes their place.
    """
    from torch.distributed.fsdp import FSDPModule

    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other
            module.set_reshard_after_forward(True, recurse=False)


def first_floating(values: Any) -> Tensor:
    """The first floating-point tensor among arguments: the state x of a network's call."""
    return next(each for each in values if isinstance(each, torch.Tensor) and each.is_floating_point())
