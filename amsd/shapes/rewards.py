"""Rewards of the embedded model: differentiable, bounded, smooth, about objects; accuracies as metrics; an embedder.

All are called as `reward(images, prompts)` with images (B, 3, H, W) in [0, 1] and return scores (B,) in float32,
higher is better. The geometric ones do not read the prompts.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from amsd.rewards.preprocess import check_pairs
from amsd.rewards.simple import PixelReward
from amsd.shapes import pipeline_path
from amsd.shapes.captions import BACKGROUND, COLORS, FORMS, SHAPES, parse_caption
from amsd.shapes.classifier import AttributeClassifier, Readings, weights_version

_FARTHEST = 3 * BACKGROUND**2
"""Squared distance of the corners of the color cube from the background."""
_SOFTNESS = 0.3**2
"""Squared distance from the background at which a pixel half counts as object."""


def objectness(images: Tensor) -> Tensor:
    """How far each pixel belongs to an object, (B, H, W) in [0, 1]; 0 on the gray background, .94 in drawn objects.

    d²/(d² + s²) of the distance d to the background, scaled to 1 at the corners of the cube: smooth, and unlike a
    threshold it has a gradient at every pixel that is not exactly background.
    """
    squared = (images.float() - BACKGROUND).square().sum(dim=1)
    return squared / (squared + _SOFTNESS) * ((_FARTHEST + _SOFTNESS) / _FARTHEST)


def _grid(size: int, like: Tensor) -> Tensor:
    """Pixel centers from -1 (left, top) to 1, (size,)."""
    return (torch.arange(size, device=like.device, dtype=torch.float32) + 0.5) * (2 / size) - 1


class RightReward(PixelReward):
    """Position of the objects: -1 at the left border, 0 in the middle, 1 at the right border.

    The objectness-weighted mean of x, with `ballast` pixels (of 32x32) of weight at 0: without them a vanishing
    object would have an unbounded gradient.
    """

    name = "shapes:right"

    def __init__(self, ballast: float = 8.0) -> None:
        if not ballast > 0:
            raise ValueError(f"ballast is {ballast}; expected a positive number of pixels")
        self.ballast = ballast

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) in (-1, 1)."""
        check_pairs(images, prompts)
        weight = objectness(images)
        moment = (weight * _grid(images.shape[-1], images)).mean((1, 2))
        return moment / (weight.mean((1, 2)) + self.ballast / 1024)


class AreaReward(PixelReward):
    """Share of the image that objects cover, in [0, 1]."""

    name = "shapes:area"

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) in [0, 1]."""
        check_pairs(images, prompts)
        return objectness(images).mean((1, 2))


class RoundnessReward(PixelReward):
    """Area against moment of inertia, A²/(2π I): 1 for a disc, .95 for a square, less for triangles and pairs.

    Of all objects of one area the disc has the least moment of inertia, so 1 is the largest value. Unlike a perimeter,
    it needs no edges and cannot be raised by blurring the image.
    """

    name = "shapes:roundness"

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) in [0, 1]."""
        check_pairs(images, prompts)
        weight = objectness(images)
        x, y = _grid(images.shape[-1], images).view(1, 1, -1), _grid(images.shape[-2], images).view(1, -1, 1)
        pixel = (2 / images.shape[-1]) * (2 / images.shape[-2])
        area = weight.sum((1, 2)) * pixel
        total = (area + 1e-3).view(-1, 1, 1)
        center_x = (weight * x).sum((1, 2), keepdim=True) * pixel / total
        center_y = (weight * y).sum((1, 2), keepdim=True) * pixel / total
        # A pixel is a square with inertia of its own, not a point: without it one lit pixel would be infinitely round.
        own = ((2 / images.shape[-1]) ** 2 + (2 / images.shape[-2]) ** 2) / 12
        spread = (x - center_x).square() + (y - center_y).square() + own
        inertia = (weight * spread).sum((1, 2)) * pixel
        return area.square() / (2 * math.pi * inertia + 1e-4)


class _Reading:
    """Common part of what looks through the attribute classifier; frozen, float32."""

    name: str

    def __init__(self, weights: str | Path | None = None) -> None:
        path = Path(weights) if weights is not None else pipeline_path() / "classifier.safetensors"
        if not path.is_file():
            raise FileNotFoundError(f"no classifier at {path}; without `weights` the embedded model's own is read")
        self.version = weights_version(path)
        self.classifier = AttributeClassifier.load(path)

    def to(self, device: torch.device | str) -> Self:
        """Move the classifier."""
        self.classifier.to(device)
        return self

    def truncated(self, prompts: Sequence[str]) -> int:
        """Captions are parsed whole, so none is cut."""
        return 0


def _wanted(prompts: Sequence[str], device: torch.device) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """What satisfies the prompts: masks (B, 8), (B, 3), (B, 3), and which attributes they name, (B, 3); all float."""
    parsed = [parse_caption(prompt) for prompt in prompts]
    masks = (
        torch.tensor([[p.color in (None, color) for color in COLORS] for p in parsed], device=device),
        torch.tensor([[p.shape in (None, shape) for shape in SHAPES] for p in parsed], device=device),
        torch.tensor([[form in p.forms for form in FORMS] for p in parsed], device=device),
    )
    named = torch.stack([~mask.all(1) for mask in masks], dim=1)
    color, shape, form = (mask.float() for mask in masks)
    return (color, shape, form), named.float()


class AlignmentReward(_Reading):
    """Mean probability, over the attributes that the caption names, that the image has them; 1 for the empty caption.

    Probabilities, not their logarithms: those have heavy-tailed gradients that fine-tuning does not survive.
    """

    name = "shapes:alignment"

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) in [0, 1]."""
        check_pairs(images, prompts)
        masks, named = _wanted(prompts, images.device)
        probabilities = self.classifier(images.float()).probabilities()
        satisfied = torch.stack([(p * m).sum(1) for p, m in zip(probabilities, masks, strict=True)], dim=1)
        count = named.sum(1)
        return torch.where(count > 0, (satisfied * named).sum(1) / count.clamp_min(1), 1.0)


class AttributeAccuracy(_Reading):
    """1 where the likeliest reading of the chosen attributes satisfies the caption, else 0; a metric, no gradient."""

    def __init__(self, name: str, attributes: Sequence[str], weights: str | Path | None = None) -> None:
        super().__init__(weights)
        self.name = name
        self.columns = [("color", "shape", "form").index(attribute) for attribute in attributes]

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,), 0 or 1."""
        check_pairs(images, prompts)
        masks, _ = _wanted(prompts, images.device)
        readings: Readings = self.classifier(images.float())
        logits = (readings.color, readings.shape, readings.form)
        right = [masks[i].gather(1, logits[i].argmax(1, keepdim=True)).squeeze(1) for i in self.columns]
        return torch.stack(right).amin(0)


class ShapesEmbedder(_Reading):
    """Features of the classifier, for diversity; they know color, shape, form, position and size."""

    name = "shapes:classifier"

    def __call__(self, images: Tensor) -> Tensor:
        """Embeddings (B, 64) of images (B, 3, H, W) in [0, 1], not normalized."""
        features: Tensor = self.classifier(images.float()).features
        return features


def _accuracy(name: str, *attributes: str) -> Callable[..., AttributeAccuracy]:
    def build(weights: str | Path | None = None) -> AttributeAccuracy:
        return AttributeAccuracy(name, attributes, weights)

    return build


color_accuracy = _accuracy("shapes:color", "color")
former_color_accuracy = _accuracy("shapes:colour", "color")
shape_accuracy = _accuracy("shapes:shape", "shape")
form_accuracy = _accuracy("shapes:form", "form")
whole_accuracy = _accuracy("shapes:accuracy", "color", "shape", "form")
