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

from torch import Tensor

LORA_FILE = "pytorch_lora_weights.safetensors"
"""The name under which diffusers looks for a LoRA file."""
METADATA_KEY = "lora_adapter_metadata"
DOWN, UP = ".lora_A.weight", ".lora_B.weight"


def write_diffusers(source: Path, target: Path) -> None:
    """The adapter file `source` in diffusers' format, with alpha / rank multiplied into B, so that alpha = rank.

    Every reader, with or without metadata, applies the update that was trained.
    """
    tensors, prefix, settings = read_adapter(source)
    for name, value in tensors.items():
        if name.endswith(UP):
            tensors[name] = value * (settings["lora_alpha"] / value.shape[1])
    settings = {**settings, "lora_alpha": settings["r"]}
    text = json.dumps({f"{prefix}.{key}": value for key, value in settings.items()}, indent=2, sort_keys=True)
    write_safetensors(target, tensors, {"format": "pt", METADATA_KEY: text})


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


def read_adapter(source: Path) -> tuple[dict[str, Tensor], str, dict[str, Any]]:
    """Tensors, the network's name in the pipeline, and the adapter's settings without that name."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    tensors = load_file(source)
    with safe_open(source, framework="pt") as stream:
        settings: dict[str, Any] = json.loads((stream.metadata() or {})[METADATA_KEY])
    (prefix,) = {name.partition(".")[0] for name in tensors}
    return tensors, prefix, {key.removeprefix(f"{prefix}."): value for key, value in settings.items()}
