"""The 8-bit path and what scorers may return."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

from amsd.errors import RunError
from amsd.evaluation.metrics import dequantize, embed, placed, quantize, score

CPU = torch.device("cpu")


class Spy:
    """Returns a function of the images and remembers what it was given."""

    name = "spy"
    version = "1"

    def __init__(self, function: Any) -> None:
        self.function = function
        self.images = torch.empty(0)
        self.devices: list[str] = []

    def __call__(self, images: Tensor, prompts: Sequence[str] = ()) -> Tensor:
        self.images = images
        result: Tensor = self.function(images)
        return result

    def to(self, device: torch.device | str) -> Self:
        self.devices.append(str(device))
        return self

    def truncated(self, prompts: Sequence[str]) -> int:
        return 0


def test_rounding_is_that_of_pictures_saved_by_diffusers() -> None:
    images = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    picture = VaeImageProcessor.numpy_to_pil(images.permute(0, 2, 3, 1).numpy())[0]
    assert np.array_equal(np.asarray(picture), quantize(images)[0].permute(1, 2, 0).numpy())


def test_quantize_clamps_and_every_byte_survives_the_round_trip() -> None:
    assert quantize(torch.tensor([-0.5, 1.5])).tolist() == [0, 255]
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(quantize(dequantize(every)), every)


def test_scorers_see_float32_bytes_without_gradient_or_autocast() -> None:
    weight = torch.ones(12, 1, requires_grad=True)
    spy = Spy(lambda images: (images.flatten(1) @ weight).squeeze(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = score(spy, torch.full((2, 3, 2, 2), 51, dtype=torch.uint8), ["a", "b"], CPU)
    assert spy.images.dtype == torch.float32
    assert values == pytest.approx([2.4, 2.4], rel=1e-6)


@pytest.mark.parametrize("shape", [(2, 1), (1,), (2, 2)])
def test_scores_of_another_shape_are_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(RunError, match="'spy' returned a tensor of shape"):
        score(Spy(lambda images: torch.zeros(shape)), torch.zeros(2, 3, 2, 2, dtype=torch.uint8), ["a", "b"], CPU)


def test_embeddings_of_another_shape_are_an_error() -> None:
    with pytest.raises(RunError, match="'spy' returned"):
        embed(Spy(lambda images: images), torch.zeros(2, 3, 2, 2, dtype=torch.uint8), CPU)


def test_a_scorer_goes_back_to_the_cpu_unless_it_may_stay() -> None:
    guest, resident = Spy(None), Spy(None)
    with placed(guest, torch.device("meta")), placed(resident, torch.device("meta"), stay=True):
        pass
    assert guest.devices == ["meta", "cpu"]
    assert resident.devices == ["meta"]
