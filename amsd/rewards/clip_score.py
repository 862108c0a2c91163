"""CLIP score: how well an image fits its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from amsd.rewards.clip import OPENAI_LARGE, CLIPImages, CLIPTexts, load_clip
from amsd.rewards.eight_bit import EightBitPath
from amsd.rewards.networks import fingerprint
from amsd.rewards.preprocess import check_pairs


class CLIPScore(EightBitPath):
    """Cosine of CLIP's image and prompt embeddings, in [-1, 1] (Hessel et al. 2021, without its factor and clipping).

    Args:
        model: transformers folder or hub repository of a CLIP model.
        revision: git revision on the hub.
        tokenizer: folder or repository of the tokenizer; unset: that of the model.
        eight_bit: score as the original does with pictures on disk, without gradient.
    """

    name = "clip-score"

    def __init__(
        self,
        model: str = OPENAI_LARGE,
        revision: str | None = None,
        tokenizer: str | None = None,
        eight_bit: bool = False,
    ) -> None:
        self._model = load_clip(model, f"reward {self.name!r}, option model", revision)
        tokens = (model, revision) if tokenizer is None else (tokenizer, None)
        self._texts = CLIPTexts.load(self._model, tokens[0], f"reward {self.name!r}, option tokenizer", tokens[1])
        self._images = CLIPImages(self._model, eight_bit)
        self._fingerprint = fingerprint(self._model, self._texts.tokenizer.vocabulary)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) of images (B, 3, H, W) in [0, 1]."""
        check_pairs(images, prompts)
        return (self._images(images) * self._texts(prompts)).sum(-1).to(images.device)

    def to(self, device: torch.device | str) -> Self:
        """Move the weights."""
        self._model.to(device)
        return self

    def truncated(self, prompts: Sequence[str]) -> int:
        """How many prompts have more than 77 tokens."""
        return self._texts.tokenizer.truncated(prompts)
