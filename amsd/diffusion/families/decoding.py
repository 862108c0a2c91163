"""Latents to pictures, in parts that a decoder has memory for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

DECODED_PIXELS = 2 * 512 * 512
"""Pixels that are decoded at once: two images of 512 x 512."""


def decode_in_slices(vae: Any, scaled: Tensor, pixels: int) -> Tensor:
    """Images (B, 3, H, W), about [0, 1], of latents (B, C, h, w) that are scaled as the decoder takes them.

    In slices of `DECODED_PIXELS`, for a decoder needs far more memory per image than the denoiser does; in float32,
    whatever the networks' precision. `pixels` is the number of pixels of one image.
    """
    rows = max(1, DECODED_PIXELS // pixels)
    with torch.autocast(scaled.device.type, enabled=False):
        images = [vae.decode(part, return_dict=False)[0] for part in scaled.float().split(rows)]
    return torch.cat(images) / 2 + 0.5
