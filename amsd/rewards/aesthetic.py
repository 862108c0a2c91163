"""LAION aesthetic predictor: how much people like the look of an image, whatever it shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from amsd.rewards.checkpoints import fill, find_file, load_tensors
from amsd.rewards.clip import OPENAI_LARGE, CLIPImages, load_clip
from amsd.rewards.eight_bit import EightBitPath
from amsd.rewards.head import ScoreHead
from amsd.rewards.networks import fingerprint, freeze, full_precision
from amsd.rewards.preprocess import check_pairs


class LaionAesthetic(EightBitPath):
    """LAION aesthetic predictor v2 (Schuhmann 2022): a linear head on CLIP ViT-L/14; about 1 to 10, prompts unread.

    Args:
        checkpoint: the head's weights (`sac+logos+ava1-l14-linearMSE.pth`): path or `hub:OWNER/REPOSITORY/FILE`.
        model: transformers folder or hub repository of the CLIP model.
        sha256: expected hash of the checkpoint.
        eight_bit: score as the original does with pictures on disk, without gradient.
    """

    name = "laion-aesthetic"

    def __init__(
        self,
        checkpoint: str = "hub:trl-lib/ddpo-aesthetic-predictor/aesthetic-model.pth",
        model: str = OPENAI_LARGE,
        sha256: str | None = None,
        eight_bit: bool = False,
    ) -> None:
        what = f"reward {self.name!r}, option checkpoint"
        path = find_file(checkpoint, what, sha256)
        self._model = load_clip(model, f"reward {self.name!r}, option model")
        self._head = ScoreHead(self._model.config.projection_dim)
        fill(self._head, load_tensors(path, what), what)
        freeze(self._head)
        self._images = CLIPImages(self._model, eight_bit)
        self._fingerprint = fingerprint(self._head, fingerprint(self._model.vision_model))

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) of images (B, 3, H, W) in [0, 1]."""
        check_pairs(images, prompts)
        embeddings = self._images(images)
        with full_precision(embeddings.device):
            scores: Tensor = self._head(embeddings)
        return scores.to(images.device)

    def to(self, device: torch.device | str) -> Self:
        """Move the weights."""
        self._model.to(device)
        self._head.to(device)
        return self

    def truncated(self, prompts: Sequence[str]) -> int:
        """No prompt is read, so none is cut."""
        return 0
