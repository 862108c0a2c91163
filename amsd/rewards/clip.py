"""CLIP's two networks (Radford et al. 2021) behind what rewards need: unit embeddings of images and of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import normalize

from amsd.reading import audit, read_json, reading, require_whole
from amsd.rewards.checkpoints import find_folder
from amsd.rewards.networks import device_of, freeze, full_precision
from amsd.rewards.preprocess import ClipPixels
from amsd.rewards.tokens import Tokenizer, load_clip_tokenizer

OPENAI_LARGE = "openai/clip-vit-large-patch14"
"""OpenAI's CLIP ViT-L/14 on the hub."""

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_BUFFERS = ("position_ids",)
"""Buffers that older files store and that the present network computes."""


def load_clip(source: str, what: str, revision: str | None = None) -> Any:
    """A frozen float32 `CLIPModel` from a local folder or the hub.

    Raises:
        UsageError: it is absent, damaged, or its weights do not fit its configuration.
    """
    folder = str(find_folder(source, what, [("config.json",), _WEIGHTS], revision=revision))
    from transformers import CLIPModel

    subject = f"{what} = {source!r}"
    read_json(Path(folder) / "config.json", subject)
    for name in _WEIGHTS:
        if (Path(folder) / name).is_file():
            require_whole(Path(folder) / name, subject)
    with reading(subject, f"{folder} as a CLIP model"):
        model, report = CLIPModel.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    left_over = {key for key in report["unexpected_keys"] if not key.endswith(_BUFFERS)}
    mismatched = [key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]]
    audit({"missing": report["missing_keys"], "left over": left_over, "of another shape": mismatched}, subject)
    freeze(model)
    return model


class CLIPImages:
    """The image network with its input transform and projection."""

    def __init__(self, model: Any, eight_bit: bool = False) -> None:
        self.model = model
        self.pixels = ClipPixels(model.config.vision_config.image_size, eight_bit)

    def __call__(self, images: Tensor) -> Tensor:
        """Unit embeddings (B, D), float32, of images (B, 3, H, W) in [0, 1]; differentiable in the images."""
        pixels = self.pixels(images.to(device_of(self.model)))
        with full_precision(pixels.device):
            pooled = self.model.vision_model(pixel_values=pixels).pooler_output
            return normalize(self.model.visual_projection(pooled), dim=-1)

    @property
    def eight_bit(self) -> bool:
        """Whether pictures are read as from disk."""
        return self.pixels.eight_bit

    def on_eight_bits(self) -> Self:
        """The same network on the 8-bit path."""
        return type(self)(self.model, eight_bit=True)


class CLIPTexts:
    """The text network with its tokenizer and projection."""

    def __init__(self, model: Any, tokenizer: Tokenizer) -> None:
        self.model = model
        self.tokenizer = tokenizer

    @classmethod
    def load(cls, model: Any, source: str, what: str, revision: str | None = None) -> CLIPTexts:
        """With the tokenizer of `source`, cut at the length the network reads (77)."""
        text = model.config.text_config
        return cls(model, load_clip_tokenizer(source, what, text.max_position_embeddings, text.vocab_size, revision))

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Unit embeddings (B, D), float32, without gradient."""
        device = device_of(self.model)
        tokens = self.tokenizer(prompts, device)
        with full_precision(device):
            pooled = self.model.text_model(input_ids=tokens.ids, attention_mask=tokens.mask).pooler_output
            return normalize(self.model.text_projection(pooled), dim=-1)
