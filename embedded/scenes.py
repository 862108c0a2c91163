"""Procedural scenes: one or two objects of one color on a mid-gray background, drawn in batches and antialiased."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from amsd.shapes.captions import BACKGROUND, COLORS, FORMS
from embedded.combinations import Combination

SIZE = 32
"""Height and width of an image in pixels."""

SMALL_RADIUS = (4.5, 5.5)
BIG_RADIUS = (8.5, 10.5)
MARGIN = 0.5
"""Least distance of an object from the border, pixels."""
GAP = 2.0
"""Least distance of two objects from each other, pixels."""
_CANDIDATES = 32
"""Placements drawn per scene with two objects; the first that keeps the objects apart is taken."""


@dataclass(frozen=True)
class Scenes:
    """A batch of B scenes with at most two objects each.

    color, shape, form: (B,) int64 indices into COLORS, SHAPES and FORMS.
    center: (B, 2, 2) pixels, [scene, object, (x, y)], x to the right and y downwards.
    radius: (B, 2) pixels; 0 for an object that is not there.
    """

    color: Tensor
    shape: Tensor
    form: Tensor
    center: Tensor
    radius: Tensor

    def __len__(self) -> int:
        return self.color.shape[0]

    def position(self) -> Tensor:
        """Center of the objects of a scene, (B, 2) in [-1, 1] of the image, weighted by object."""
        present = (self.radius > 0).unsqueeze(-1)
        mean = (self.center * present).sum(1) / present.sum(1)
        return mean / (SIZE / 2) - 1


def sample_scenes(combinations: Sequence[Combination], count: int, generator: torch.Generator) -> Scenes:
    """Draw `count` scenes whose attributes are uniform over `combinations`; on the CPU, determined by the generator."""
    table = torch.tensor(list(combinations), dtype=torch.int64)
    chosen = table[torch.randint(len(table), (count,), generator=generator)]
    return scenes_of(chosen[:, 0], chosen[:, 1], chosen[:, 2], generator)


def scenes_of(color: Tensor, shape: Tensor, form: Tensor, generator: torch.Generator) -> Scenes:
    """Draw sizes and positions for scenes of given attributes, each (B,) int64."""
    count = color.shape[0]
    spread = torch.rand(count, generator=generator)
    small = SMALL_RADIUS[0] + (SMALL_RADIUS[1] - SMALL_RADIUS[0]) * spread
    big = BIG_RADIUS[0] + (BIG_RADIUS[1] - BIG_RADIUS[0]) * spread
    radius = torch.where(form == FORMS.index("big"), big, small)
    reach = radius + MARGIN
    placed = torch.rand(count, _CANDIDATES, 2, 2, generator=generator)
    placed = reach.view(-1, 1, 1, 1) + placed * (SIZE - 2 * reach).view(-1, 1, 1, 1)
    distance = (placed[:, :, 0] - placed[:, :, 1]).norm(dim=-1)
    # Squares need the larger distance, at their corners; one rule for all keeps positions independent of the shape.
    apart = distance >= (2 * radius + GAP).unsqueeze(1) * 1.15
    first = apart.to(torch.int64).argmax(dim=1)
    center = placed[torch.arange(count), first]
    is_pair = form == FORMS.index("two")
    return Scenes(color, shape, form, center, torch.stack([radius, radius * is_pair], dim=1))


def render(scenes: Scenes, device: torch.device | str = "cpu") -> Tensor:
    """Draw scenes as images, (B, 3, 32, 32) float32 in [0, 1]; edges are one pixel wide."""
    coverage = object_coverage(scenes).to(device).unsqueeze(1)
    colors = torch.tensor(list(COLORS.values()), device=device)[scenes.color.to(device)]
    return BACKGROUND + coverage * (colors.view(-1, 3, 1, 1) - BACKGROUND)


def object_coverage(scenes: Scenes) -> Tensor:
    """Share of each pixel that objects cover, (B, 32, 32) in [0, 1]."""
    pixel = torch.arange(SIZE) + 0.5
    dx = pixel.view(1, 1, 1, -1) - scenes.center[..., 0].view(-1, 2, 1, 1)
    dy = pixel.view(1, 1, -1, 1) - scenes.center[..., 1].view(-1, 2, 1, 1)
    radius = scenes.radius.view(-1, 2, 1, 1)
    distances = torch.stack([_circle(dx, dy, radius), _square(dx, dy, radius), _triangle(dx, dy, radius)])
    own = distances[scenes.shape, torch.arange(len(scenes))]
    covered = (0.5 - own).clamp(0, 1) * (radius > 0)
    return covered.amax(dim=1)


def _circle(dx: Tensor, dy: Tensor, radius: Tensor) -> Tensor:
    """Signed distance to a disc, negative inside; pixels."""
    return (dx.square() + dy.square()).sqrt() - radius


def _square(dx: Tensor, dy: Tensor, radius: Tensor) -> Tensor:
    """Signed distance (largest coordinate) to a square about as large as the disc."""
    return torch.maximum(dx.abs(), dy.abs()) - 0.92 * radius


def _triangle(dx: Tensor, dy: Tensor, radius: Tensor) -> Tensor:
    """Signed distance (largest half-plane) to an upright triangle, 2.2 radii wide and 2 radii high."""
    width, height = 1.1 * radius, 2.0 * radius
    slope = (width.square() + height.square()).sqrt().clamp_min(1e-6)
    sides = (dx.abs() * height - (dy + radius) * width) / slope
    return torch.maximum(sides, dy - radius)
