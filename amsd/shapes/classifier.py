"""The attribute classifier: reads color, shape and form off an image; its features measure diversity."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from amsd.shapes.captions import COLORS, FORMS, SHAPES

FEATURES = 64
"""Width of the penultimate layer."""
GEOMETRY = 3
"""Quantities that an auxiliary head regresses: position (x, y) in [-1, 1] and the covered share of the image."""


@dataclass(frozen=True)
class Readings:
    """What the classifier reads off B images: logits (B, 8), (B, 3), (B, 3), geometry (B, 3), features (B, 64)."""

    color: Tensor
    shape: Tensor
    form: Tensor
    geometry: Tensor
    features: Tensor

    def probabilities(self) -> tuple[Tensor, Tensor, Tensor]:
        """Probabilities of color (B, 8), shape (B, 3) and form (B, 3)."""
        return self.color.softmax(-1), self.shape.softmax(-1), self.form.softmax(-1)


class AttributeClassifier(nn.Module):
    """A small CNN on images (B, 3, 32, 32) in [0, 1].

    Smooth activations, because rewards are differentiated through it; group norm, because a batch must equal its
    samples one by one. The geometry head keeps position in the features, so that diversity sees objects that all
    moved to one side.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.GroupNorm(4, width), nn.SiLU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1), nn.GroupNorm(4, width), nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.GroupNorm(8, 2 * width), nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.GroupNorm(8, 2 * width), nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1), nn.GroupNorm(8, 2 * width), nn.SiLU(),
            nn.Flatten(),
            nn.Linear(2 * width * 16, FEATURES), nn.SiLU(),
        )  # fmt: skip
        self.color = nn.Linear(FEATURES, len(COLORS))
        self.shape = nn.Linear(FEATURES, len(SHAPES))
        self.form = nn.Linear(FEATURES, len(FORMS))
        self.geometry = nn.Linear(FEATURES, GEOMETRY)

    def forward(self, images: Tensor) -> Readings:
        """Read images (B, 3, H, W) in [0, 1]; other sizes than 32 are resized (bilinear, antialiased)."""
        if images.shape[-2:] != (32, 32):
            images = nn.functional.interpolate(images, size=(32, 32), mode="bilinear", antialias=True)
        features: Tensor = self.body(2 * images - 1)
        return Readings(
            self.color(features), self.shape(features), self.form(features), self.geometry(features), features
        )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Load frozen float32 weights from a safetensors file."""
        classifier = cls()
        classifier.load_state_dict({name: value.float() for name, value in load_file(path).items()})
        return classifier.eval().requires_grad_(False)

    def save(self, path: Path) -> None:
        """Write the weights as float16 safetensors."""
        save_file({name: value.detach().half().contiguous() for name, value in self.state_dict().items()}, path)


def weights_version(path: Path) -> str:
    """First 12 hex digits of the sha256 of a weights file: scores of different weights never pass as one."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def accuracy(readings: Readings, color: Tensor, shape: Tensor, form: Tensor) -> dict[str, float]:
    """Share of right readings per attribute and of all three at once ("all")."""
    right = torch.stack(
        [readings.color.argmax(-1) == color, readings.shape.argmax(-1) == shape, readings.form.argmax(-1) == form]
    )
    names = ("color", "shape", "form")
    shares = {name: float(right[i].float().mean()) for i, name in enumerate(names)}
    return {**shares, "all": float(right.all(0).float().mean())}
