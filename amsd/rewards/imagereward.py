"""ImageReward on transformers' BLIP, with the original checkpoint converted by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from amsd.rewards.checkpoints import fill, find_file, load_tensors
from amsd.rewards.eight_bit import EightBitPath
from amsd.rewards.head import ScoreHead
from amsd.rewards.networks import device_of, fingerprint, freeze, full_precision
from amsd.rewards.preprocess import ClipPixels, check_pairs
from amsd.rewards.tokens import Tokens, load_bert_tokenizer

IMAGE_SIZE = 224
TOKENS = 35
"""Tokens of a prompt that are read, start and end included."""
MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of raw scores over the authors' data; scores are standardized by them."""


@dataclass(frozen=True)
class Architecture:
    """Sizes of the network; the defaults are those of the published checkpoint."""

    vision_width: int = 1024
    vision_layers: int = 24
    vision_heads: int = 16
    text_width: int = 768
    text_layers: int = 12
    text_heads: int = 12
    vocabulary: int = 30524


class ImageReward(EightBitPath):
    """ImageReward v1.0 (Xu et al. 2023): human preference of an image under its prompt; mean 0, s.d. 1 over their data.

    Args:
        checkpoint: the original `ImageReward.pt`: path or `hub:OWNER/REPOSITORY/FILE`.
        tokenizer: folder or hub repository of BERT's uncased tokenizer.
        sha256: expected hash of the checkpoint.
        eight_bit: score as the original does with pictures on disk, without gradient.
        architecture: other sizes than the published ones, by the names of `Architecture`.
    """

    name = "imagereward"

    def __init__(
        self,
        checkpoint: str = "hub:THUDM/ImageReward/ImageReward.pt",
        tokenizer: str = "google-bert/bert-base-uncased",
        sha256: str | None = None,
        eight_bit: bool = False,
        architecture: Mapping[str, int] | None = None,
    ) -> None:
        sizes = Architecture(**(architecture or {}))
        what = f"reward {self.name!r}, option checkpoint"
        path = find_file(checkpoint, what, sha256)
        self._tokenizer = load_bert_tokenizer(
            tokenizer, f"reward {self.name!r}, option tokenizer", TOKENS, sizes.vocabulary
        )
        self._network = Network(sizes)
        fill(self._network, convert(load_tensors(path, what)), what)
        freeze(self._network)
        self._images = ClipPixels(IMAGE_SIZE, eight_bit)
        self._fingerprint = fingerprint(self._network, self._tokenizer.vocabulary)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Standardized scores (B,) of images (B, 3, H, W) in [0, 1]."""
        check_pairs(images, prompts)
        device = device_of(self._network)
        tokens = self._tokenizer(prompts, device)
        with full_precision(device):
            raw: Tensor = self._network(self._images(images.to(device)), tokens)
        return ((raw - MEAN) / STD).to(images.device)

    def to(self, device: torch.device | str) -> Self:
        """Move the weights."""
        self._network.to(device)
        return self

    def truncated(self, prompts: Sequence[str]) -> int:
        """How many prompts have more than 35 tokens."""
        return self._tokenizer.truncated(prompts)


class Network(nn.Module):
    """BLIP's image network, its text network reading the image by cross-attention, and a linear head on [CLS]."""

    def __init__(self, sizes: Architecture) -> None:
        super().__init__()
        from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

        self.vision = BlipVisionModel(
            BlipVisionConfig(
                hidden_size=sizes.vision_width,
                intermediate_size=4 * sizes.vision_width,
                num_hidden_layers=sizes.vision_layers,
                num_attention_heads=sizes.vision_heads,
                image_size=IMAGE_SIZE,
                patch_size=16,
                hidden_act="gelu",
                layer_norm_eps=1e-6,
            )
        )
        self.text = BlipTextModel(
            BlipTextConfig(
                vocab_size=sizes.vocabulary,
                hidden_size=sizes.text_width,
                intermediate_size=4 * sizes.text_width,
                num_hidden_layers=sizes.text_layers,
                num_attention_heads=sizes.text_heads,
                encoder_hidden_size=sizes.vision_width,
                max_position_embeddings=512,
                hidden_act="gelu",
                layer_norm_eps=1e-12,
                pad_token_id=0,
                is_decoder=True,  # builds the cross-attention; the forward pass is an encoder's
            ),
            add_pooling_layer=False,
        )
        self.head = ScoreHead(sizes.text_width)

    def forward(self, pixels: Tensor, tokens: Tokens) -> Tensor:
        """Raw scores (B,) of normalized pixels (B, 3, 224, 224) under tokens (B, 35)."""
        # `pooler_output` would be normed twice.
        patches = self.vision(pixel_values=pixels).last_hidden_state
        states: Any = self.text(
            input_ids=tokens.ids,
            attention_mask=tokens.mask,
            encoder_hidden_states=patches,
            encoder_attention_mask=torch.ones(patches.shape[:2], dtype=torch.long, device=patches.device),
            is_decoder=False,
        )
        scores: Tensor = self.head(states.last_hidden_state[:, 0])
        return scores


_DROPPED = ("blip.vision_proj.", "blip.text_proj.")
_PREFIXES = {
    "blip.visual_encoder.cls_token": "vision.embeddings.class_embedding",
    "blip.visual_encoder.pos_embed": "vision.embeddings.position_embedding",
    "blip.visual_encoder.patch_embed.proj.": "vision.embeddings.patch_embedding.",
    "blip.visual_encoder.blocks.": "vision.encoder.layers.",
    "blip.visual_encoder.norm.": "vision.post_layernorm.",
    "blip.text_encoder.": "text.",
    "mlp.": "head.",
}
_INSIDE_BLOCKS = {
    ".norm1.": ".layer_norm1.",
    ".norm2.": ".layer_norm2.",
    ".attn.qkv.": ".self_attn.qkv.",
    ".attn.proj.": ".self_attn.projection.",
}


def convert(original: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The original checkpoint under the names of `Network`; an unknown name is kept, and refused when it is loaded."""
    return {
        _renamed(key): value
        for key, value in original.items()
        if not key.startswith(_DROPPED) and not key.endswith(".position_ids")
    }


def _renamed(key: str) -> str:
    for old, new in _PREFIXES.items():
        if key.startswith(old):
            key = new + key.removeprefix(old)
            break
    if key.startswith("vision.encoder.layers."):
        for old, new in _INSIDE_BLOCKS.items():
            key = key.replace(old, new)
    return key
