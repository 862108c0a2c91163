"""A reward without a gradient: how many separate shapes a picture of the embedded model shows.

amsd train shapes --set method.name=ram --set 'reward=[{name = "python:examples/shape_count.py:shape_count"}]'
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage

BACKGROUND = 0.5
"""Gray level of the embedded model's background."""
CONTRAST = 0.25
"""Distance from the background, over the three colors, from which on a pixel belongs to a shape."""
SMALLEST = 12
"""Pixels that a shape has at least; what is smaller is noise."""


def shape_count(images: torch.Tensor, prompts: list[str]) -> np.ndarray:
    """Number of connected components of the pixels that differ from the background, one count per image."""
    distance = (images.detach().cpu().numpy() - BACKGROUND) ** 2
    shown = np.sqrt(distance.sum(axis=1)) > CONTRAST
    return np.array([_components(picture) for picture in shown], dtype=np.float64)


def _components(shown: np.ndarray) -> int:
    labels, count = ndimage.label(shown)
    sizes = ndimage.sum_labels(shown, labels, index=range(1, count + 1))
    return int((np.asarray(sizes) >= SMALLEST).sum())
