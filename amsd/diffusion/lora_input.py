"""LoRA files made by any tool that diffusers reads: put on a pipeline so that nothing of them is left out unnoticed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from amsd.diffusion.families.base import Family
from amsd.errors import UsageError
from amsd.reading import reading, require_whole

FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
"""Names under which amsd, PEFT and diffusers save a LoRA in a folder."""
_FACTORS = ("lora_A", "lora_B", "lora.down", "lora.up", "lora_down", "lora_up", "lora_linear_layer")
_NAME = "file"


def lora_file(path: Path) -> Path | None:
    """The LoRA file that a path means: itself, or the one in a folder that holds no pipeline; None if there is none."""
    if path.is_dir():
        if (path / "model_index.json").is_file():
            return None
        return next((path / name for name in FILES if (path / name).is_file()), None)
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    require_whole(path, str(path))
    return path if any(_is_factor(name) for name in _names(path)) else None


def merge(family: Family, file: Path, what: str) -> None:
    """Add a LoRA file to the weights of a pipeline, text encoders included where the file has them.

    Raises:
        UsageError: the file does not fit the model; it is named.
    """
    put_on(family, file, what)
    with reading(what, file):
        family.pipeline.fuse_lora(components=[family.denoiser_name, *_trained_encoders(family)])
        family.pipeline.unload_lora_weights()


def put_on(family: Family, file: Path, what: str, name: str = _NAME) -> None:
    """Load a LoRA file as the adapter `name` of a pipeline's networks.

    Raises:
        UsageError: it cannot be read, belongs to another architecture, or a part of it was left out.
    """
    require_whole(file, what)
    hint = "The LoRA belongs to another architecture than the base model, or to a tool whose format is unknown."
    with reading(what, file, hint):
        family.pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name)
    stored = [each for each in _names(file) if _is_factor(each)]
    loaded = [each for network in (family.denoiser, *family.text_encoders) for each in _adapter(network, name)]
    if len(loaded) < len(stored):
        raise UsageError(
            f"{what}: {file} holds {len(stored)} matrices, of which {len(stored) - len(loaded)} have no place in the "
            f"base model (the first of the file: {stored[0]}). {hint}"
        )


def trains_text(family: Family, name: str = _NAME) -> bool:
    """Whether a LoRA that was put on changes a text encoder."""
    return any(True for encoder in family.text_encoders for _ in _adapter(encoder, name))


def _trained_encoders(family: Family) -> list[str]:
    components = family.pipeline.components
    names = [name for name in family.text_encoder_names if components.get(name) is not None]
    return [name for name in names if any(True for _ in _adapter(components[name], _NAME))]


def _adapter(network: Any, name: str) -> Iterator[str]:
    """Names of an adapter's matrices."""
    return (key for key, _ in network.named_parameters() if "lora_" in key and f".{name}." in f"{key}.")


def _names(file: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as stream:
        return list(stream.keys())


def _is_factor(name: str) -> bool:
    return any(factor in name for factor in _FACTORS) and not name.endswith((".alpha", "dora_scale"))
