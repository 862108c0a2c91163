"""What a LoRA file holds, whatever tool wrote it: two matrices and a strength for each layer that it changes."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amsd.diffusion.families import known_families
from amsd.diffusion.families.base import Family
from amsd.diffusion.families.lora_names import PEFT_PREFIX, LayerNames, Place, Role, role_of
from amsd.diffusion.finite import require_finite_file
from amsd.diffusion.lora_file import METADATA_KEY
from amsd.errors import UsageError
from amsd.reading import parsed_object, read_json, reading, reason_of

NO_PLACE = "The LoRA belongs to another architecture than the base model, or to a tool whose format is unknown."


@dataclass(frozen=True)
class LoraLayer:
    """What one layer gets: alpha / rank x up @ down."""

    down: Tensor
    """(rank, in) or (rank, in, height, width)."""
    up: Tensor
    """(out, rank) or (out, rank, 1, 1)."""
    alpha: float
    magnitude: Tensor | None = None
    """Of a DoRA."""

    @property
    def rank(self) -> int:
        """Rows of `down`."""
        return int(self.down.shape[0])


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file."""

    layers: Mapping[str, Mapping[str, LoraLayer]]
    """Layers by the name of their network in the pipeline, and by their name in it."""

    def changes_text(self, family: Family) -> bool:
        """Whether it changes a text encoder."""
        return any(name != family.denoiser_name for name in self.layers)

    def strengths(self) -> tuple[set[int], set[float]]:
        """Every rank and every alpha."""
        every = [layer for network in self.layers.values() for layer in network.values()]
        return {layer.rank for layer in every}, {layer.alpha for layer in every}

    def state(self, component: str) -> dict[str, Tensor]:
        """The tensors for one network, in PEFT's words."""
        found: dict[str, Tensor] = {}
        for module, layer in self.layers.get(component, {}).items():
            found |= {f"{module}.lora_A.weight": layer.down, f"{module}.lora_B.weight": layer.up}
            if layer.magnitude is not None:
                found[f"{module}.lora_magnitude_vector"] = layer.magnitude
        return found

    def put_on(self, component: str, network: Any, name: str) -> None:
        """Give a network the adapter `name` with this file's layers; nothing where it has none for this network."""
        from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

        layers = self.layers.get(component)
        if not layers:
            return
        ranks = {module: layer.rank for module, layer in layers.items()}
        alphas = {module: layer.alpha for module, layer in layers.items()}
        (rank, _), (alpha, _) = (Counter(each.values()).most_common(1)[0] for each in (ranks, alphas))
        config = LoraConfig(
            r=rank, lora_alpha=alpha, target_modules=sorted(layers),
            rank_pattern={_exactly(module): each for module, each in ranks.items() if each != rank},
            alpha_pattern={_exactly(module): each for module, each in alphas.items() if each != alpha},
            use_dora=any(layer.magnitude is not None for layer in layers.values()),
        )  # fmt: skip
        # Not by the network's own method: that of transformers asks for a PEFT which may not be released yet.
        inject_adapter_in_model(config, network, adapter_name=name)
        missed = set_peft_model_state_dict(network, self.state(component), adapter_name=name).unexpected_keys
        if missed:
            raise ValueError(f"{len(missed)} matrices do not fit the network, such as {missed[0]}")


def read_lora(family: Family, file: Path, what: str) -> LoraFile:
    """Read a LoRA file for a family, whose networks may have no storage.

    Raises:
        UsageError: it cannot be read, a number in it is not finite, or a tensor of it has no place in the networks.
    """
    from safetensors import safe_open

    with reading(what, file), safe_open(file, framework="pt") as stream:
        tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        metadata = parsed_object((stream.metadata() or {}).get(METADATA_KEY, "{}"))
    require_finite_file(tensors.items(), f"{what}: {file}")
    names = LayerNames(family)
    found, astray = _sorted(tensors, names)
    if astray:
        refusal = no_place(what, file, len(tensors), len(astray), astray[0])
        try:
            found, still = _sorted(_in_words_of_diffusers(family, file, what), names)
        except UsageError as error:
            raise UsageError(f"{refusal}{_why_not(error)}") from error
        if still or not found:
            raise UsageError(refusal)
    peft = _peft_settings(file, what) if all(name.startswith(PEFT_PREFIX) for name in tensors) else None
    layers: dict[str, dict[str, LoraLayer]] = {}
    for place, roles in found.items():
        prefix = f"{place.component}."
        own = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
        with reading(what, file):
            layer = _layer(place, roles, own if peft is None else peft)
        layers.setdefault(place.component, {})[place.module] = layer
    return LoraFile(layers)


def _why_not(error: UsageError) -> str:
    """What stopped diffusers' converter: it knows the formats of other tools, some of them at one size alone."""
    cause = error.__cause__
    if cause is None:
        return ""
    said = f" diffusers, which knows the formats of other tools, cannot convert it: {reason_of(cause)}"
    sizes = " It splits joined layers (linear1, qkv) at the widths of the published model alone."
    return said + (sizes if isinstance(cause, AssertionError) else "")


def no_place(what: str, file: Path, stored: int, astray: int, first: str) -> str:
    """That tensors of a file have no place in the base model."""
    return (
        f"{what}: {file} holds {stored} tensors, of which {astray} have no place in the base model (the first: "
        f"{first}). {NO_PLACE}"
    )


def tensor_names(file: Path) -> list[str]:
    """Names of the tensors in a safetensors file."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as stream:
        return list(stream.keys())


def _sorted(tensors: Mapping[str, Tensor], names: LayerNames) -> tuple[dict[Place, dict[str, Tensor]], list[str]]:
    """Tensors by their layer and by what they are to it, and the names that no layer has."""
    found: dict[Place, dict[str, Tensor]] = {}
    astray = []
    for name, value in tensors.items():
        role = role_of(name)
        places = () if role is None else names.find(role[0])
        if role is None or not places:
            astray.append(name)
            continue
        for place, part in zip(places, _parts(value, role[1], places), strict=True):
            found.setdefault(place, {})[role[1]] = part
    return found, astray


def _parts(value: Tensor, role: Role, places: tuple[Place, ...]) -> Sequence[Tensor]:
    """What each of several layers gets of a tensor for all of them: its own rows of what the outputs have.

    Rows that are too few or too many go to the last one, where they are found not to fit.
    """
    if len(places) == 1 or role in ("down", "alpha"):
        return [value] * len(places)
    rows = [place.layer.out_features for place in places[:-1] if isinstance(place.layer, nn.Linear)]
    flat = value.flatten() if role == "magnitude" else value
    return flat.tensor_split(list(accumulate(rows)))


def _layer(place: Place, roles: Mapping[str, Tensor], settings: Mapping[str, Any]) -> LoraLayer:
    """One layer's tensors, in float32 and in the layer's own form.

    Raises:
        ValueError: one is missing, or they do not fit the layer.
    """
    lacking = [name for name in ("down", "up") if name not in roles]
    if lacking:
        raise ValueError(f"{place.component}.{place.module} has no matrix lora_{lacking[0]}")
    down, up = (_formed(roles[name].float(), place.layer) for name in ("down", "up"))
    if down.ndim < 2 or up.ndim < 2 or down.shape[0] != up.shape[1] or not down.shape[0] or not _fits(place, down, up):
        raise ValueError(
            f"its matrices for {place.component}.{place.module} have shapes {list(roles['down'].shape)} and "
            f"{list(roles['up'].shape)}, which do not fit the layer. {NO_PLACE}"
        )
    alpha = float(roles["alpha"]) if "alpha" in roles else _alpha(settings, place.module, int(down.shape[0]))
    magnitude = roles.get("magnitude")
    if magnitude is not None and magnitude.numel() != up.shape[0]:
        raise ValueError(
            f"its magnitudes for {place.component}.{place.module} are {magnitude.numel()} numbers, but the layer has "
            f"{up.shape[0]} outputs. {NO_PLACE}"
        )
    return LoraLayer(down, up, alpha, None if magnitude is None else magnitude.float())


def _formed(value: Tensor, layer: nn.Module | None) -> Tensor:
    """A matrix as its layer has it: tools write the 1 x 1 convolutions of some models as matrices, and the reverse."""
    if isinstance(layer, nn.Conv2d) and value.ndim == 2:
        return value[:, :, None, None]
    if isinstance(layer, nn.Linear) and value.ndim == 4 and value.shape[2:] == (1, 1):
        return value.flatten(1)
    return value


def _fits(place: Place, down: Tensor, up: Tensor) -> bool:
    layer = place.layer
    if isinstance(layer, nn.Linear):
        return (down.shape[1:], up.shape[:1]) == ((layer.in_features,), (layer.out_features,))
    if isinstance(layer, nn.Conv2d):
        shapes = (layer.in_channels, *layer.kernel_size), (layer.out_channels,)
        return (tuple(down.shape[1:]), tuple(up.shape[:1])) == shapes
    return True


def _alpha(settings: Mapping[str, Any], module: str, rank: int) -> float:
    """A layer's alpha, from the settings that PEFT and diffusers keep beside the tensors; without any, the rank."""
    pattern = settings.get("alpha_pattern") or {}
    own = (value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", module))
    alpha = float(next(own, settings.get("lora_alpha") or rank))
    if not math.isfinite(alpha):
        raise ValueError(f"its alpha for {module} is {alpha}")
    return alpha * math.sqrt(rank) if settings.get("use_rslora") else alpha


def _exactly(module: str) -> str:
    """The layer as a pattern of PEFT's, which match the ends of names."""
    return re.escape(module)


def _peft_settings(file: Path, what: str) -> dict[str, Any]:
    config = file.parent / "adapter_config.json"
    if not config.is_file():
        raise UsageError(
            f"{what}: {file} is a LoRA as PEFT saves it, and its adapter_config.json, which holds its alpha, is not "
            "beside it. Put it there."
        )
    found = read_json(config, what)
    kind = found.get("peft_type", "LORA")
    if kind != "LORA":
        raise UsageError(f"{what}: {config} is that of a {kind}, which amsd does not read. Merge it, or use a LoRA.")
    return found


def _in_words_of_diffusers(family: Family, file: Path, what: str) -> dict[str, Tensor]:
    """The tensors as diffusers' own converter names them, with their alphas; none where no pipeline reads LoRA.

    It knows formats that split or join layers, such as those of other tools for FLUX.
    """
    import diffusers
    from diffusers.utils import convert_unet_state_dict_to_peft

    owner = f"{type(family).__module__}:{type(family).__name__}"
    name = next((name for name, target in known_families().items() if target == owner), "")
    read: Callable[..., Any] | None = getattr(getattr(diffusers, name, None), "lora_state_dict", None)
    if read is None:
        return {}
    options = {"unet_config": family.denoiser.config, "return_alphas": True}
    with reading(what, file, NO_PLACE):
        found = read(str(file.parent), weight_name=file.name, **options)
        state, alphas = (found[0], found[1] or {}) if isinstance(found, tuple) else (found, {})
        names = {key: value for key, value in convert_unet_state_dict_to_peft(state).items() if ".lora_" in key}
        return {**names, **{_alpha_name(key): torch.tensor(float(value)) for key, value in alphas.items()}}


def _alpha_name(key: str) -> str:
    return key if key.endswith(".alpha") else f"{key}.alpha"
