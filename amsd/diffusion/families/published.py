"""Models on the hub whose architecture is known without asking the hub: sizes for plans, counted and not copied.

Configurations are written down from public descriptions, and copies of them in several public repositories agree; they
were not compared with the published files. The parameters are counted on networks without storage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import torch


@dataclass(frozen=True)
class NetworkOnPaper:
    """A network on paper."""

    library: str
    class_name: str
    config: tuple[tuple[str, Any], ...]
    """Where it differs from its class's defaults."""

    @property
    def parameters(self) -> int:
        """Number of its parameters."""
        return _count(self)

    def made(self, **changes: Any) -> Any:
        """The network with random weights, on the device and in the type that are PyTorch's defaults at the time."""
        found, config = getattr(import_module(self.library), self.class_name), {**dict(self.config), **changes}
        return found(found.config_class(**config)) if self.library == "transformers" else found.from_config(config)


@dataclass(frozen=True)
class Published:
    """A model that plans know."""

    names: tuple[str, ...]
    """Parts of hub ids that mean it."""
    denoiser: Mapping[str, Any]
    """Configuration of the denoiser, where it differs from its class's defaults."""
    parts: Mapping[str, NetworkOnPaper]
    """Autoencoder and text encoders by their names in the pipeline."""
    stored_bytes: int
    """Per parameter of the files that are downloaded without a variant; those of the variant "fp16" have two."""
    vae_scale: int = 8
    """Pixels per latent."""


def _network(library: str, class_name: str, **config: Any) -> NetworkOnPaper:
    return NetworkOnPaper(library, class_name, tuple(config.items()))


def _text(class_name: str, **config: Any) -> NetworkOnPaper:
    return _network("transformers", class_name, **config)


_CLIP_L = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "projection_dim": 768,
}  # fmt: skip
_CLIP_G = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
    "projection_dim": 1280,
}  # fmt: skip
CLIP_L = _text("CLIPTextModel", **_CLIP_L)
CLIP_L_POOLED = _text("CLIPTextModelWithProjection", **_CLIP_L)
CLIP_G_POOLED = _text("CLIPTextModelWithProjection", **_CLIP_G)
T5_XXL = _text(
    "T5EncoderModel", d_model=4096, d_ff=10240, d_kv=64, num_heads=64, num_layers=24, vocab_size=32128,
    feed_forward_proj="gated-gelu", tie_word_embeddings=False,
)  # fmt: skip


def _autoencoder(**config: Any) -> NetworkOnPaper:
    return _network(
        "diffusers", "AutoencoderKL", block_out_channels=(128, 256, 512, 512), layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, **config,
    )  # fmt: skip


VAE = _autoencoder(latent_channels=4)
VAE_16 = _autoencoder(latent_channels=16, use_quant_conv=False, use_post_quant_conv=False)


@cache
def _count(network: NetworkOnPaper) -> int:
    with torch.device("meta"):
        made = network.made()
    return sum(parameter.numel() for parameter in made.parameters())
