"""LoRA files in kohya's format, whose names are known for the UNet of Stable Diffusion 1, 2 and XL."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amsd.diffusion.lora_file import DOWN, UP, read_adapter, write_safetensors


def write_kohya(source: Path, target: Path, base_version: str = "") -> None:
    """The adapter file `source` in kohya's format, which ComfyUI, A1111 and InvokeAI read.

    Each module `lora_unet_<its name in diffusers>` has `lora_down.weight`, `lora_up.weight` and its own `alpha`.
    `base_version` is the base model in kohya's words ("sd_v1", "sdxl_base_v1-0").

    Raises:
        ValueError: the file holds adapters of another network than a UNet.
    """
    tensors, prefix, settings = read_adapter(source)
    if prefix != "unet":
        raise ValueError(f"{source}: its adapters are for {prefix!r}; kohya's format has names for UNets only")
    converted: dict[str, Tensor] = {}
    for name, value in tensors.items():
        part = DOWN if name.endswith(DOWN) else UP
        module = "lora_unet_" + name.removeprefix(f"{prefix}.").removesuffix(part).replace(".", "_")
        converted[f"{module}.lora_{'down' if part == DOWN else 'up'}.weight"] = value
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
