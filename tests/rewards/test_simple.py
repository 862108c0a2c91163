"""Color statistics against hand-made images."""

from __future__ import annotations

import math

import pytest
import torch

from amsd.rewards.protocol import Reward
from amsd.rewards.simple import Brightness, Colorfulness
from tests.rewards.contract import RewardContract


class TestBrightness(RewardContract):
    reads_prompts = False
    long_prompt = None

    @pytest.fixture
    def reward(self) -> Reward:
        return Brightness()


class TestColorfulness(RewardContract):
    reads_prompts = False
    long_prompt = None

    @pytest.fixture
    def reward(self) -> Reward:
        return Colorfulness()


def flat(red: float, green: float, blue: float) -> torch.Tensor:
    return torch.tensor([red, green, blue]).view(1, 3, 1, 1).expand(1, 3, 8, 8)


def test_brightness_runs_from_black_to_white() -> None:
    images = torch.cat([flat(0, 0, 0), flat(1, 1, 1), flat(0, 1, 0)])
    assert Brightness()(images, ["", "", ""]).tolist() == pytest.approx([0, 1, 0.587])


def test_colorfulness_is_zero_for_gray_and_has_a_finite_gradient_there() -> None:
    images = flat(0.5, 0.5, 0.5).clone().requires_grad_()
    score = Colorfulness()(images, [""])
    (gradient,) = torch.autograd.grad(score.sum(), images)
    assert score.item() == pytest.approx(0, abs=1e-6)
    assert gradient.isfinite().all()


def test_colorfulness_of_half_red_half_green() -> None:
    """rg is ±1 and yb is 1/2 everywhere: spread |(1, 0)|, shift |(0, 1/2)|."""
    images = torch.cat([flat(1, 0, 0), flat(0, 1, 0)], dim=3)
    assert Colorfulness()(images, [""]).item() == pytest.approx(1 + 0.3 * 0.5, rel=0.02)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 1, 8, 8)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Brightness()(torch.zeros(shape), [""])


def test_a_missing_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="1 prompts for 2 images"):
        Colorfulness()(torch.zeros(2, 3, 8, 8), [""])


def test_doubling_the_contrast_of_colors_doubles_the_score() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 16, 16, generator=generator) * 0.4
    once, twice = Colorfulness()(images, ["", ""]), Colorfulness()(2 * images, ["", ""])
    assert (twice / once).tolist() == pytest.approx([2, 2], rel=0.05)
    assert not math.isnan(float(once.sum()))
