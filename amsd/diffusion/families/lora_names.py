"""Names of a LoRA file's tensors, in the words of any tool: which layer of which network a tensor belongs to.

Tools spell one layer in many ways: `unet.mid_block.attentions.0.proj_in.lora_A.weight` (diffusers, PEFT),
`lora_unet_mid_block_attentions_0_proj_in.lora_down.weight` (kohya's tools), the same with the names of the original
layout (`middle_block_1_proj_in`), `diffusion_model.middle_block.1.proj_in.lora_down.weight` (ComfyUI),
`....processor.to_q_lora.down.weight` (diffusers until 0.20). All spellings of a network's own layers are one table.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from amsd.diffusion.families.base import Family

Role = Literal["down", "up", "magnitude", "alpha"]
_ROLE = re.compile(
    r"(?P<layer>.+?)(?:"
    r"\.lora_(?P<peft>[AB])(?:\.(?!weight$|bias$)[\w-]+)?\.weight"
    r"|\.lora_(?P<kohya>down|up)\.weight"
    r"|(?:\.lora|\.lora_linear_layer|_lora)\.(?P<dotted>down|up)\.weight"
    r"|\.(?P<magnitude>lora_magnitude_vector)(?:\.[\w-]+){0,2}"
    r"|\.(?P<alpha>alpha)"
    r")"
)
PEFT_PREFIX = "base_model.model."
"""How PEFT's `save_pretrained` begins every name."""
_DENOISER = (
    "diffusion_model.",
    "model.diffusion_model.",
    PEFT_PREFIX,
    "",
    "lora_unet_",
    "lora_transformer_",
    "lycoris_",
)
"""How tools begin the names of a denoiser's layers; those that end with `_` write `_` for every dot."""
_TEXT = {
    "text_encoder": ("lora_te_", "lora_te1_", "text_encoders.clip_l.transformer.", "clip_l.transformer."),
    "text_encoder_2": ("lora_te2_", "text_encoders.clip_g.transformer.", "clip_g.transformer."),
    "text_encoder_3": ("lora_te3_", "text_encoders.t5xxl.transformer.", "t5xxl.transformer."),
}
_HALF = "text_model."
"""What names of CLIP's layers begin with, or not, by the version of transformers."""
_OLD_TEXT = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}


@dataclass(frozen=True)
class Place:
    """A layer."""

    component: str
    """Its network's name in the pipeline."""
    module: str
    """Its name in the network."""
    layer: nn.Module | None
    """None of a network that is not at hand."""


def role_of(name: str) -> tuple[str, Role] | None:
    """How a tensor's name spells its layer, and what the tensor is to it; None for what belongs to no LoRA."""
    match = _ROLE.fullmatch(name)
    if match is None:
        return None
    if match["alpha"]:
        return match["layer"], "alpha"
    if match["magnitude"]:
        return match["layer"], "magnitude"
    word = match["peft"] or match["kohya"] or match["dotted"]
    return match["layer"], "down" if word in ("A", "down") else "up"


class LayerNames:
    """The layers of a family's networks by every name that tools give them."""

    def __init__(self, family: Family) -> None:
        """Of a family around networks, which may have no storage."""
        networks = networks_of(family)
        self._known: dict[str, tuple[Place, ...]] = {}
        for component, network in networks.items():
            spelled = dict(family.other_layer_names()) if component == family.denoiser_name else {}
            for module, layer in _layers(network):
                place = Place(component, module, layer)
                for name in _spellings(component, module, component == family.denoiser_name, spelled):
                    self._known.setdefault(name, (place,))
        self._know_joined(family)
        # A family on paper has its denoiser alone: what a file says of its text encoders is taken as it is.
        absent = () if len(networks) > 1 else family.text_encoder_names
        self._absent = {f"{name}.": name for name in absent} | {
            prefix: name for name in absent for prefix in _TEXT.get(name, ())
        }

    def _know_joined(self, family: Family) -> None:
        own = dict(_layers(family.denoiser))
        for other, modules in family.joined_layer_names().items():
            if all(module in own for module in modules):
                places = tuple(Place(family.denoiser_name, module, own[module]) for module in modules)
                for prefix in _DENOISER:
                    self._known.setdefault(_spelled(prefix, other), places)

    def find(self, spelled: str) -> tuple[Place, ...]:
        """The layer of this name, or those whose outputs its own follow; none where there is no such layer."""
        for prefix, component in self._absent.items():
            if spelled.startswith(prefix):
                return (Place(component, spelled.removeprefix(prefix), None),)
        return self._known.get(spelled, ())


def networks_of(family: Family) -> dict[str, Any]:
    """The networks that a LoRA may change, by their names in the pipeline."""
    components: Mapping[str, Any] = getattr(family.pipeline, "components", {})
    texts = {name: components[name] for name in family.text_encoder_names if components.get(name) is not None}
    return {family.denoiser_name: family.denoiser, **texts}


def _layers(network: Any) -> Iterator[tuple[str, nn.Module]]:
    """Layers that a LoRA can change; inside one that has an adapter already lies the layer itself."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and ".lora_" not in name:
            yield name.removesuffix(".base_layer"), module


def _spellings(component: str, module: str, denoiser: bool, other: Mapping[str, str]) -> Iterator[str]:
    """Every name of a layer, without what says the tensor's role."""
    prefixes = (f"{component}.", f"{PEFT_PREFIX}{component}.", *(_DENOISER if denoiser else _TEXT.get(component, ())))
    for name in _denoiser_names(module, other) if denoiser else _text_names(module):
        for prefix in prefixes:
            yield _spelled(prefix, name)


def _spelled(prefix: str, name: str) -> str:
    return prefix + (name.replace(".", "_") if prefix.endswith("_") else name)


def _denoiser_names(module: str, other: Mapping[str, str]) -> Iterator[str]:
    """A layer's own name, that of the original layout, and that of attention processors."""
    yield module
    container = module
    while container:
        if container in other:
            yield other[container] + module.removeprefix(container)
            break
        container = container.rpartition(".")[0]
    path, _, last = module.removesuffix(".0").rpartition(".")
    if last in ("to_q", "to_k", "to_v", "to_out"):
        yield f"{path}.processor.{last}"
        yield f"{path}.{last}"


def _text_names(module: str) -> Iterator[str]:
    path, _, last = module.removeprefix(_HALF).rpartition(".")
    for half in ("", _HALF):
        yield half + module.removeprefix(_HALF)
        if last in _OLD_TEXT:
            yield f"{half}{path}.{_OLD_TEXT[last]}"
