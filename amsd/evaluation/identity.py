"""Identities: hashes of what determines a result, never of the arguments somebody typed."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

#: Libraries that decide how the same weights and noise become an image.
_LIBRARIES = ("torch", "diffusers", "transformers")


def identity(ingredients: Any) -> str:
    """sha256 of plain data (JSON), independent of the order of keys."""
    text = json.dumps(ingredients, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def library_versions() -> dict[str, str]:
    """Versions of the libraries that images depend on."""
    return {name: version(name) for name in _LIBRARIES}


def pipeline_identity(pipeline: Any) -> str:
    """sha256 of a loaded pipeline: every network's weights and configuration, and the tokenizers.

    To be taken from the base model as loaded, before adapters are added. Reads all weights once: seconds for SD 1.5.
    """
    from torch import nn

    digest = hashlib.sha256(type(pipeline).__name__.encode())
    for name, part in sorted(pipeline.components.items()):
        if isinstance(part, nn.Module):
            digest.update(f"{name}:{type(part).__name__}:{_configuration(part)}".encode())
            _add_weights(digest, part)
        elif name.startswith("tokenizer") and part is not None:
            vocabulary = json.dumps(sorted(part.get_vocab().items()))
            digest.update(f"{name}:{part.model_max_length}:{vocabulary}".encode())
    return digest.hexdigest()


def _add_weights(digest: hashlib._Hash, network: nn.Module) -> None:
    import torch

    for key, tensor in sorted(network.state_dict().items()):
        digest.update(f"{key}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        data = tensor.detach().cpu().contiguous().flatten()
        digest.update(data.view(torch.uint8).numpy() if data.numel() else b"")


def _configuration(network: nn.Module) -> str:
    config: Any = network.config  # diffusers: a FrozenDict; transformers: a PretrainedConfig
    plain = dict(config) if isinstance(config, dict) else config.to_dict()
    kept = {key: value for key, value in plain.items() if not key.startswith("_") and "version" not in key}
    return json.dumps(kept, sort_keys=True, default=str)
