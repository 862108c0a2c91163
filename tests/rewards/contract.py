"""What every reward promises. Subclass `RewardContract` in a test module and give it a `reward` fixture.

    class TestBrightness(RewardContract):
        @pytest.fixture
        def reward(self) -> Reward:
            return Brightness()

A reward that is slow to build comes from a module-scoped fixture function. Networks come with tiny random
configurations. Nothing here knows what a score means.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from amsd.rewards.protocol import Reward


class RewardContract:
    """Shape, pairing, gradient, batching, determinism, device and truncation of one reward."""

    prompts: Sequence[str] = ("a red circle", "two blue triangles on a table", "small star")
    """Different prompts of ordinary length."""
    size = 32
    """Side of the test images."""
    reads_prompts = True
    """Whether the score depends on the prompt."""
    long_prompt: str | None = "word " * 400
    """A prompt that the scorer cuts, or None if it reads any length."""
    tolerance = 1e-5
    """Of equal scores, relative to the largest score of the batch (at least 1e-3)."""
    gradient_tolerance = 0.02
    """Relative error of the directional finite difference."""
    step = 1e-3
    """Length of the finite difference, per pixel."""

    @pytest.fixture
    def images(self) -> Tensor:
        """(3, 3, size, size): smooth, different, away from 0 and 1."""
        generator = torch.Generator().manual_seed(0)
        coarse = torch.rand(len(self.prompts), 3, 4, 4, generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, size=self.size, mode="bicubic", align_corners=True)
        return 0.5 + 0.6 * (smooth.clamp(0, 1) - 0.5)

    def test_one_float32_score_per_image(self, reward: Reward, images: Tensor) -> None:
        scores = reward(images, self.prompts)
        assert scores.shape == (len(images),)
        assert scores.dtype == torch.float32
        assert scores.isfinite().all()
        assert scores.std() > 0, "all images score the same; the test images cannot tell anything"

    def test_half_precision_images_still_give_float32(self, reward: Reward, images: Tensor) -> None:
        assert reward(images.bfloat16(), self.prompts).dtype == torch.float32

    def test_a_score_belongs_to_its_own_pair(self, reward: Reward, images: Tensor) -> None:
        """Batch equals single, so no score mixes in another image or another prompt."""
        together = reward(images, self.prompts)
        alone = torch.cat([reward(images[i : i + 1], [prompt]) for i, prompt in enumerate(self.prompts)])
        self.assert_equal(together, alone)

    def test_a_permuted_batch_gives_permuted_scores(self, reward: Reward, images: Tensor) -> None:
        order = [2, 0, 1]
        permuted = reward(images[order], [self.prompts[i] for i in order])
        self.assert_equal(permuted, reward(images, self.prompts)[order])

    def test_prompts_matter_exactly_if_they_are_read(self, reward: Reward, images: Tensor) -> None:
        scores = reward(images, self.prompts)
        swapped = reward(images, [*self.prompts[1:], self.prompts[0]])
        if self.reads_prompts:
            assert (scores - swapped).abs().max() > 10 * self.tolerance * self.scale(scores)
        else:
            self.assert_equal(scores, swapped)

    def test_gradient_equals_the_finite_difference(self, reward: Reward, images: Tensor) -> None:
        variable = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(reward(variable, self.prompts).sum(), variable)
        assert gradient.isfinite().all()
        assert (gradient.flatten(1).norm(dim=1) > 0).all(), "an image has no gradient at all"
        # Along the gradient itself, per image: the direction in which the difference is least lost in rounding.
        direction = gradient / gradient.flatten(1).abs().amax(1).view(-1, 1, 1, 1) * self.step
        with torch.no_grad():
            difference = reward(images + direction, self.prompts) - reward(images - direction, self.prompts)
        expected = 2 * (gradient * direction).flatten(1).sum(1)
        torch.testing.assert_close(difference, expected, rtol=self.gradient_tolerance, atol=1e-6)

    def test_an_image_gets_gradient_from_its_own_score_only(self, reward: Reward, images: Tensor) -> None:
        variable = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(reward(variable, self.prompts)[0], variable)
        assert gradient[0].abs().max() > 0
        assert gradient[1:].abs().max() == 0

    def test_two_calls_agree(self, reward: Reward, images: Tensor) -> None:
        assert torch.equal(reward(images, self.prompts), reward(images, self.prompts))

    def test_weights_get_no_gradient(self, reward: Reward, images: Tensor) -> None:
        scores = reward(images, self.prompts)
        assert not scores.requires_grad, "without a gradient on the images nothing may require one"

    def test_moving_returns_the_reward_itself(self, reward: Reward, images: Tensor) -> None:
        before = reward(images, self.prompts)
        assert reward.to("cpu") is reward
        assert reward.to(torch.device("cpu")) is reward
        assert torch.equal(reward(images, self.prompts), before)

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    def test_scores_follow_to_another_device(self, reward: Reward, images: Tensor) -> None:
        before = reward(images, self.prompts)
        try:
            moved = reward.to("cuda")(images.cuda(), self.prompts)
            assert moved.device.type == "cuda"
            torch.testing.assert_close(moved.cpu(), before, rtol=1e-2, atol=1e-2)
        finally:
            reward.to("cpu")

    def test_truncated_prompts_are_counted(self, reward: Reward) -> None:
        assert reward.truncated([]) == 0
        assert reward.truncated(list(self.prompts)) == 0
        if self.long_prompt is not None:
            assert reward.truncated([self.prompts[0], self.long_prompt, self.long_prompt]) == 2
        else:
            assert reward.truncated(["word " * 400]) == 0

    def test_name_and_version_are_given(self, reward: Reward) -> None:
        assert reward.name
        assert reward.name == reward.name.strip()
        assert reward.version

    def scale(self, scores: Tensor) -> float:
        """What counts as 1 for this reward."""
        return max(float(scores.abs().max()), 1e-3)

    def assert_equal(self, one: Tensor, other: Tensor) -> None:
        """Equal up to the rounding of another batch shape."""
        torch.testing.assert_close(one, other, rtol=0, atol=self.tolerance * self.scale(other))
