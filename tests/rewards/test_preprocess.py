"""The input transform against the original's numbers, against Pillow and against torchvision."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from amsd.rewards.preprocess import CLIP_MEAN, CLIP_STD, ClipPixels
from tests.rewards.tiny import golden_image

FOLDER = Path(__file__).parents[1] / "golden"
GOLDEN = json.loads((FOLDER / "imagereward.json").read_text())
G8 = load_file(FOLDER / "g8_ir_preprocess.safetensors")


@pytest.fixture(scope="module")
def decoded() -> torch.Tensor:
    """The formula of golden/g8: a decoder's output in about [-1.2, 1.2]."""
    i, j = (
        torch.arange(512.0, dtype=torch.float64).view(1, -1, 1),
        torch.arange(512.0, dtype=torch.float64).view(1, 1, -1),
    )
    channel = torch.arange(1, 4).view(-1, 1, 1)
    return (1.2 * torch.sin(2 * torch.pi * (channel * i / 64 + j / 37))).float()[None]


def test_float_path_and_its_gradient_are_the_reference_s(decoded: torch.Tensor) -> None:
    variable = decoded.clone().requires_grad_()
    pixels = ClipPixels()((variable / 2 + 0.5).clamp(0, 1))[0]
    torch.testing.assert_close(pixels[:, 7::16, 7::16], G8["tensor_path/out_grid"], atol=1e-5, rtol=0)
    torch.testing.assert_close(pixels.double().sum((1, 2)), G8["tensor_path/out_sum"], atol=0.1, rtol=1e-6)
    i, j, c = torch.arange(224.0).view(1, -1, 1), torch.arange(224.0).view(1, 1, -1), torch.arange(1, 4).view(-1, 1, 1)
    (gradient,) = torch.autograd.grad((pixels * torch.cos(0.1 * (c * i + 2 * j))).sum(), variable)
    torch.testing.assert_close(gradient[0, :, 5::37, 5::37], G8["tensor_path/grad_grid"], atol=1e-5, rtol=0)


def test_8_bit_path_is_the_reference_s(decoded: torch.Tensor) -> None:
    pixels = ClipPixels(eight_bit=True)((decoded / 2 + 0.5).clamp(0, 1))[0]
    torch.testing.assert_close(pixels[:, 7::16, 7::16], G8["pil_path/out_grid"], atol=1e-5, rtol=0)
    torch.testing.assert_close(pixels.double().sum((1, 2)), G8["pil_path/out_sum"], atol=0.1, rtol=1e-6)


def test_golden_images_are_preprocessed_as_by_the_original_code() -> None:
    expected = GOLDEN["variants"]["tiny"]["float32"]["preprocessed"]
    pixels = ClipPixels()(torch.stack([golden_image(i) for i in range(4)]))
    np.testing.assert_allclose(pixels[:, 0, :4, :4], expected["slice_c0_0_4_0_4"], atol=1e-5)
    np.testing.assert_allclose(pixels[:, 2, 110:114, 110:114], expected["slice_c2_110_114_110_114"], atol=1e-5)
    np.testing.assert_allclose(pixels.std((1, 2, 3)), expected["std"], rtol=1e-5)


def test_a_wide_image_is_cropped_as_by_the_original_code() -> None:
    expected = GOLDEN["rectangular_preprocess"]["antialias_True"]
    pixels = ClipPixels()(golden_image(3, 384, 640)[None])
    assert list(pixels.shape) == expected["shape"]
    np.testing.assert_allclose(pixels[0, 0, 100:104, 100:104], expected["slice_c0_100_104_100_104"], atol=2e-5)


@pytest.mark.parametrize(("height", "width"), [(512, 512), (300, 451), (100, 64), (224, 224), (37, 37)])
def test_8_bit_path_is_pillow_s_to_the_last_bit(height: int, width: int) -> None:
    from PIL import Image
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(height))
    picture = Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())
    original = Compose(
        [Resize(224, InterpolationMode.BICUBIC), CenterCrop(224), ToTensor(), Normalize(CLIP_MEAN, CLIP_STD)]
    )
    ours = ClipPixels(eight_bit=True)(image[None])[0]
    assert torch.equal(ours, original(picture))
