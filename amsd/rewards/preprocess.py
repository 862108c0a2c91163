"""Images as the scorers' networks read them: resized, cropped to a square, normalized; with gradient.

Two paths. The float path is differentiable and used for training. The 8-bit path computes what the original scorers do
with pictures on disk: 8-bit intensities, resized by Pillow, which rounds to 8 bits after each of its two passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from amsd.errors import UsageError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class ClipPixels:
    """The input transform of CLIP and of every scorer built on it (Radford et al. 2021; torchvision's geometry).

    The shorter side becomes `size` (bicubic, antialiased), the middle square is cut out, channels are normalized.
    """

    size: int = 224
    eight_bit: bool = False
    """Score as the originals do with pictures on disk; such scores have no gradient."""
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def __call__(self, images: Tensor) -> Tensor:
        """Network input (B, 3, size, size), float32, of images (B, 3, H, W) in [0, 1].

        Raises:
            UsageError: a gradient is wanted through the 8-bit path.
        """
        if self.eight_bit and images.requires_grad and torch.is_grad_enabled():
            raise UsageError("eight_bit = true rounds the image, so there is no gradient; use it for evaluation only")
        scale = _resize_as_pillow if self.eight_bit else resize
        square = _crop(scale(images.float(), *_target(images, self.size)), self.size)
        return (square - _channels(self.mean, square)) / _channels(self.std, square)

    def on_eight_bits(self) -> Self:
        """The same transform on the 8-bit path."""
        return replace(self, eight_bit=True)


def check_pairs(images: Tensor, prompts: Sequence[str]) -> None:
    """Raise `ValueError` unless these are images (B, 3, H, W) and one prompt for each."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images have shape {tuple(images.shape)}; expected (B, 3, H, W) in [0, 1]")
    if len(prompts) != images.shape[0]:
        raise ValueError(f"{len(prompts)} prompts for {images.shape[0]} images; expected one per image")


def resize(images: Tensor, height: int, width: int) -> Tensor:
    """Bicubic resize with antialiasing, differentiable; overshoot beyond [0, 1] is kept."""
    if images.shape[-2:] == (height, width):
        return images
    return interpolate(images, size=(height, width), mode="bicubic", align_corners=False, antialias=True)


def _target(images: Tensor, size: int) -> tuple[int, int]:
    """(height, width) with `size` as the shorter side."""
    height, width = images.shape[-2:]
    shorter = min(height, width)
    return int(size * height / shorter), int(size * width / shorter)


def _resize_as_pillow(images: Tensor, height: int, width: int) -> Tensor:
    """Pillow's own bicubic resize of 8-bit pictures, which no other library matches to the last bit."""
    from PIL import Image

    pictures = (images.detach() * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    resized = [Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC) for picture in pictures]
    stacked = torch.stack([torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8) for picture in resized])
    return stacked.view(-1, height, width, 3).permute(0, 3, 1, 2).to(images.device) / 255


def _crop(images: Tensor, size: int) -> Tensor:
    top, left = (round((side - size) / 2) for side in images.shape[-2:])
    return images[..., top : top + size, left : left + size]


def _channels(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device, dtype=like.dtype).view(1, 3, 1, 1)
