"""LoRA files for other tools: the strength is in the tensors, not only in metadata that few readers know.

peft's scale of the update is alpha / rank. diffusers reads alpha from the file's metadata; ComfyUI, A1111 and older
diffusers do not, and take a scale of 1, or the tensor `<module>.alpha` of kohya's format.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

LORA_FILE = "pytorch_lora_weights.safetensors"
"""The name under which diffusers looks for a LoRA file."""
METADATA_KEY = "lora_adapter_metadata"
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"


def write_diffusers(source: Path, target: Path) -> None:
    """The adapter file `source` in diffusers' format, with alpha / rank multiplied into B, so that alpha = rank.

    Every reader, with or without metadata, applies the update that was trained.
    """
    tensors, prefix, settings = _read(source)
    for name, value in tensors.items():
        if name.endswith(_UP):
            tensors[name] = value * (settings["lora_alpha"] / value.shape[1])
    settings = {**settings, "lora_alpha": settings["r"]}
    text = json.dumps({f"{prefix}.{key}": value for key, value in settings.items()}, indent=2, sort_keys=True)
    write_safetensors(target, tensors, {"format": "pt", METADATA_KEY: text})


def write_kohya(source: Path, target: Path, base_version: str = "") -> None:
    """The adapter file `source` in kohya's format, which ComfyUI, A1111 and InvokeAI read.

    Each module `lora_unet_<its name in diffusers>` has `lora_down.weight`, `lora_up.weight` and its own `alpha`.
    `base_version` is the base model in kohya's words ("sd_v1", "sdxl_base_v1-0").

    Raises:
        ValueError: the file holds adapters of another network than a UNet.
    """
    tensors, prefix, settings = _read(source)
    if prefix != "unet":
        raise ValueError(f"{source}: adapters of {prefix!r}; kohya's names are known for a UNet only")
    converted: dict[str, Tensor] = {}
    for name, value in tensors.items():
        part = _DOWN if name.endswith(_DOWN) else _UP
        module = "lora_unet_" + name.removeprefix(f"{prefix}.").removesuffix(part).replace(".", "_")
        converted[f"{module}.lora_{'down' if part == _DOWN else 'up'}.weight"] = value
        converted[f"{module}.alpha"] = torch.tensor(float(settings["lora_alpha"]))
    metadata = {
        "format": "pt", "ss_network_module": "networks.lora", "ss_network_dim": str(settings["r"]),
        "ss_network_alpha": str(float(settings["lora_alpha"])),
    }  # fmt: skip
    if base_version:
        metadata["ss_base_model_version"] = base_version
    write_safetensors(target, converted, metadata)


def base_version(unet_config: Mapping[str, Any]) -> str:
    """The base model in kohya's words, from the width of the text that a UNet attends to; empty for other models."""
    return {768: "sd_v1", 1024: "sd_v2", 2048: "sdxl_base_v1-0"}.get(unet_config["cross_attention_dim"], "")


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file whose bytes follow from its content alone.

    safetensors writes several keys of metadata in random order, but equal weights must be equal files, for they are
    known by their hash. Layout: 8 bytes length of the header, the header as JSON, the data.
    """
    from safetensors.torch import save

    data = save({name: value.detach().contiguous().cpu() for name, value in sorted(tensors.items())})
    (length,) = struct.unpack("<Q", data[:8])
    header = {"__metadata__": dict(sorted(metadata.items())), **json.loads(data[8 : 8 + length])}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def _read(source: Path) -> tuple[dict[str, Tensor], str, dict[str, Any]]:
    """Tensors, the network's name in the pipeline, and the adapter's settings without that name."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    tensors = load_file(source)
    with safe_open(source, framework="pt") as stream:
        settings: dict[str, Any] = json.loads((stream.metadata() or {})[METADATA_KEY])
    (prefix,) = {name.partition(".")[0] for name in tensors}
    return tensors, prefix, {key.removeprefix(f"{prefix}."): value for key, value in settings.items()}
