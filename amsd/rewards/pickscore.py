"""PickScore: human preference between images of one prompt, learned from Pick-a-Pic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from amsd.rewards.clip import CLIPImages, CLIPTexts, load_clip
from amsd.rewards.eight_bit import EightBitPath
from amsd.rewards.networks import fingerprint
from amsd.rewards.preprocess import check_pairs


class PickScore(EightBitPath):
    """PickScore v1 (Kirstain et al. 2023, eq. 1): exp(logit_scale) times the cosine of a fine-tuned CLIP ViT-H/14.

    About 16 to 24 for real pairs; a difference of 1 makes the better image e times as likely to be preferred.

    Args:
        model: transformers folder or hub repository.
        revision: git revision on the hub.
        tokenizer: folder or repository of the tokenizer.
        eight_bit: score as the original does with pictures on disk, without gradient.
    """

    name = "pickscore"

    def __init__(
        self,
        model: str = "yuvalkirstain/PickScore_v1",
        revision: str | None = None,
        tokenizer: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        eight_bit: bool = False,
    ) -> None:
        self._model = load_clip(model, f"reward {self.name!r}, option model", revision)
        self._texts = CLIPTexts.load(self._model, tokenizer, f"reward {self.name!r}, option tokenizer")
        self._images = CLIPImages(self._model, eight_bit)
        self._fingerprint = fingerprint(self._model, self._texts.tokenizer.vocabulary)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) of images (B, 3, H, W) in [0, 1]."""
        check_pairs(images, prompts)
        cosine = (self._images(images) * self._texts(prompts)).sum(-1)
        scores: Tensor = self._model.logit_scale.exp() * cosine
        return scores.to(images.device)

    def to(self, device: torch.device | str) -> Self:
        """Move the weights."""
        self._model.to(device)
        return self

    def truncated(self, prompts: Sequence[str]) -> int:
        """How many prompts have more than 77 tokens."""
        return self._texts.tokenizer.truncated(prompts)
