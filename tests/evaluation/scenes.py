"""A small recipe and scorers that the tests of this room share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from amsd.recipe import Recipe, from_dict

PROMPTS = ("a red circle", "two blue triangles", "a small square")


def recipe(evaluation: Mapping[str, Any] | None = None, **sections: Any) -> Recipe:
    """Three samples of each prompt, 2 steps, guided, at eta 1; `brightness` is trained."""
    tree: dict[str, Any] = {
        "reward": [{"name": "brightness"}],
        "schedule": {"num_inference_steps": 2},
        "method": {"timesteps_per_trajectory": 1},
        "guidance": {"guidance_scale": 3.0},
        "evaluation": {"samples_per_prompt": 3, "batch_size": 4, "eta": [1.0], "images": 2, **(evaluation or {})},
    }
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section}
    return from_dict(tree)


class CountingReward:
    """Mean of the images plus a share of the prompt's length; counts the images that it was shown."""

    def __init__(self, name: str = "brightness", version: str = "1", bad: str | None = None) -> None:
        self.name, self.version, self.bad = name, version, bad
        self.seen = 0

    def __repr__(self) -> str:
        return f"CountingReward({self.name!r}, {self.version!r})"  # the same in every process that collects tests

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        self.seen += len(images)
        values = images.mean((1, 2, 3)) + torch.tensor([len(prompt) / 100 for prompt in prompts])
        return torch.where(torch.tensor([prompt == self.bad for prompt in prompts]), torch.nan, values)

    def to(self, device: torch.device | str) -> Self:
        return self

    def truncated(self, prompts: Sequence[str]) -> int:
        return 0


class PixelsEmbedder:
    """The pixels themselves, or averages over `side` x 1 of them."""

    def __init__(self, name: str = "pixels", version: str = "1", side: int | None = None) -> None:
        self.name, self.version, self.side = name, version, side
        self.seen = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return (images if self.side is None else adaptive_avg_pool2d(images, (self.side, 1))).flatten(1)

    def to(self, device: torch.device | str) -> Self:
        return self
