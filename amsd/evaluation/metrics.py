"""Scoring of finished pictures: every reward and embedder on the 8-bit path, without gradient, in float32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from amsd.errors import RunError
from amsd.rewards.calling import call
from amsd.rewards.protocol import Embedder, Reward


def quantize(images: Tensor) -> Tensor:
    """Images (B, 3, H, W), float, to uint8, as diffusers and PIL round them; values outside [0, 1] are clamped."""
    return (images.float().clamp(0, 1) * 255).round().to(torch.uint8)


def dequantize(pictures: Tensor) -> Tensor:
    """uint8 pictures back to float32 in [0, 1]."""
    return pictures.float() / 255


@contextmanager
def placed(scorer: Reward | Embedder, device: torch.device, stay: bool = False) -> Iterator[None]:
    """Lend the device to a scorer; afterwards it goes back to the CPU unless it may `stay` (training needs it)."""
    scorer.to(device)
    try:
        yield
    finally:
        if not stay:
            scorer.to("cpu")


@torch.no_grad()
def score(reward: Reward, pictures: Tensor, prompts: Sequence[str], device: torch.device) -> list[float]:
    """Scores of pictures (B, 3, H, W), uint8, under their prompts.

    Raises:
        RewardFailed: the reward raised, or returned something else than one number per image.
    """
    with torch.autocast(device.type, enabled=False):
        scores = call(reward, dequantize(pictures.to(device)), prompts, "metric")
    values: list[float] = scores.cpu().double().tolist()
    return values


@torch.no_grad()
def embed(embedder: Embedder, pictures: Tensor, device: torch.device) -> Tensor:
    """Embeddings (B, D), float32 on the CPU, of pictures (B, 3, H, W), uint8.

    Raises:
        RunError: the embedder returns another shape than (B, D).
    """
    with torch.autocast(device.type, enabled=False):
        embeddings = embedder(dequantize(pictures.to(device)))
    if embeddings.ndim != 2 or len(embeddings) != len(pictures):
        raise RunError(f"embedder {embedder.name!r} returned {tuple(embeddings.shape)} for {len(pictures)} images")
    return embeddings.float().cpu()
