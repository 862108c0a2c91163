"""LoRA files in the forms that tools give them: read as diffusers reads them, and compared with a network on paper."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from amsd.diffusion.families import known_families
from amsd.diffusion.families.base import Family
from amsd.diffusion.lora_file import METADATA_KEY, write_safetensors
from amsd.errors import UsageError
from amsd.reading import read_json, reading

PEFT_PREFIX = "base_model.model."
"""How PEFT's `save_pretrained` begins every name."""
_PEFT_SETTINGS = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora")
_TEXT = "text_encoder"
NO_PLACE = "The LoRA belongs to another architecture than the base model, or to a tool whose format is unknown."


@contextmanager
def in_words_of_diffusers(family: Family, file: Path, what: str) -> Iterator[Path]:
    """The file itself, or inside, a copy of a file of PEFT with diffusers' names and with its settings in it.

    Raises:
        UsageError: a file of PEFT lacks its `adapter_config.json`, without which its strength is unknown.
    """
    from safetensors.torch import load_file

    names = tensor_names(file)
    if not names or not all(name.startswith(PEFT_PREFIX) for name in names):
        yield file
        return
    settings = _peft_settings(file, what)
    with reading(what, file), TemporaryDirectory() as folder:
        prefix = family.denoiser_name
        tensors = {f"{prefix}.{name.removeprefix(PEFT_PREFIX)}": value for name, value in load_file(file).items()}
        modules = sorted({name.removeprefix(PEFT_PREFIX).partition(".lora_")[0] for name in names})
        settings = {f"{prefix}.{key}": value for key, value in {**settings, "target_modules": modules}.items()}
        copy = Path(folder) / file.name
        write_safetensors(copy, tensors, {"format": "pt", METADATA_KEY: json.dumps(settings)})
        yield copy


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
    return {key: found[key] for key in _PEFT_SETTINGS if found.get(key) is not None}


def require_places(family: Family, file: Path, what: str) -> bool:
    """Check a LoRA's matrices against the layers of a denoiser, which may have no storage.

    Returns whether the file changes a text encoder too; of a family whose pipeline reads no LoRA, nothing is known.

    Raises:
        UsageError: a matrix has no place in the denoiser.
    """
    state = _state(family, file, what)
    layers = {name: value for name, value in state.items() if not name.startswith(_TEXT)}
    modules = dict(family.denoiser.named_modules())
    astray = [name for name, value in layers.items() if not _has_place(name, value, modules)]
    if astray:
        raise UsageError(no_place(what, file, len(layers), len(astray), astray[0]))
    return len(layers) < len(state)


def no_place(what: str, file: Path, stored: int, astray: int, first: str) -> str:
    """That matrices of a file have no place in the base model."""
    return (
        f"{what}: {file} holds {stored} matrices, of which {astray} have no place in the base model (the first: "
        f"{first}). {NO_PLACE}"
    )


def _state(family: Family, file: Path, what: str) -> Mapping[str, torch.Tensor]:
    """The matrices by the names of PEFT, those of text with their encoder's; empty where no pipeline reads LoRA."""
    import diffusers
    from diffusers.utils import convert_unet_state_dict_to_peft

    owner = f"{type(family).__module__}:{type(family).__name__}"
    name = next((name for name, target in known_families().items() if target == owner), "")
    read = getattr(getattr(diffusers, name, None), "lora_state_dict", None)
    if read is None:
        return {}
    with in_words_of_diffusers(family, file, what) as readable, reading(what, file, NO_PLACE):
        state = read(str(readable.parent), weight_name=readable.name, unet_config=family.denoiser.config)
        state = state[0] if isinstance(state, tuple) else state
        text = {key: value for key, value in state.items() if key.startswith(_TEXT)}
        own = {key.removeprefix(f"{family.denoiser_name}."): state[key] for key in state.keys() - text.keys()}
        own = {key: value for key, value in convert_unet_state_dict_to_peft(own).items() if ".lora_" in key}
        return dict(sorted((own | text).items()))


def _has_place(name: str, value: torch.Tensor, modules: Mapping[str, nn.Module]) -> bool:
    layer, _, factor = name.partition(".lora_")
    weight = getattr(modules.get(layer), "weight", None)
    if weight is None:
        return False
    if factor.startswith("A"):
        return bool(value.shape[1] == weight.shape[1])
    return not factor.startswith("B") or bool(value.shape[0] == weight.shape[0])


def tensor_names(file: Path) -> list[str]:
    """Names of the tensors in a safetensors file."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as stream:
        return list(stream.keys())
