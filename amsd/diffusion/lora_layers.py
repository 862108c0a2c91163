"""Which layers of a network get a low-rank adapter, by the rule of PEFT; the plan and the policy ask here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from amsd.errors import UsageError, nearest
from amsd.recipe.schema import Lora

Adaptable = nn.Linear | nn.Conv2d
_KINDS = (nn.Linear, nn.Conv2d)


def adapted_layers(network: nn.Module, targets: Sequence[str]) -> dict[str, Adaptable]:
    """The layers that `model.lora.targets` names: whole names, or their last parts after a dot.

    Raises:
        UsageError: a target names no layer, or something that takes no low-rank adapter. The default targets are those
            of every family; a network need not have all of them.
    """
    modules = dict(network.named_modules())
    found: dict[str, Adaptable] = {}
    for target in targets:
        named = {name: module for name, module in modules.items() if name == target or name.endswith(f".{target}")}
        for name, module in named.items():
            if not isinstance(module, _KINDS):
                raise UsageError(
                    f"model.lora.targets: {target!r} names {name}, a {type(module).__name__}. Low-rank adapters are "
                    f"for linear layers and convolutions. {_known(modules, target)}"
                )
            found[name] = module
        if not named and (tuple(targets) != Lora().targets):
            raise UsageError(
                f"model.lora.targets: {target!r} names no layer of this network. {_known(modules, target)}"
            )
    return found


def adapter_parameters(layer: Adaptable, rank: int) -> int:
    """Parameters of one layer's adapter: B A with A (rank, inputs) and B (outputs, rank)."""
    outputs = layer.weight.shape[0]
    return rank * (layer.weight[0].numel() + outputs)


def _known(modules: Mapping[str, nn.Module], target: str) -> str:
    """Targets that may have been meant."""
    ends = sorted({_end(name) for name, module in modules.items() if isinstance(module, _KINDS)})
    return nearest(target, ends) or ""


def _end(name: str) -> str:
    """The last part of a layer's name that is a word: `to_q`, `to_out.0`."""
    parts = name.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdigit() else parts[-1]
