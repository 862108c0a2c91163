"""The weighted sum against arithmetic by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import pytest
import torch
from torch import Tensor

from amsd.errors import RunError, UsageError
from amsd.recipe import RewardTerm
from amsd.rewards.combination import Term, WeightedReward
from amsd.rewards.simple import Brightness, Colorfulness


class Constant:
    """Scores every image by its mean times a factor; may forget its gradient or its shape."""

    version = "1"

    def __init__(self, name: str, factor: float, gradient: bool = True, shape: tuple[int, ...] = (-1,)) -> None:
        self.name, self.factor, self.gradient, self.shape = name, factor, gradient, shape
        self.device = "cpu"

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        scores = (images.mean((1, 2, 3)) * self.factor).view(self.shape)
        return scores if self.gradient else scores.detach()

    def to(self, device: torch.device | str) -> Self:
        self.device = str(device)
        return self

    def truncated(self, prompts: Sequence[str]) -> int:
        return len(prompts)


@pytest.fixture
def images() -> Tensor:
    return torch.stack([torch.full((3, 4, 4), value) for value in (0.25, 0.5)])


def test_total_is_the_weighted_sum_and_terms_stay_raw(images: Tensor) -> None:
    reward = WeightedReward([Term(Constant("a", 1), weight=2.0), Term(Constant("b", 10), weight=-0.5)])
    values = reward(images, ["x", "y"])
    assert values.total.tolist() == pytest.approx([2 * 0.25 - 0.5 * 2.5, 2 * 0.5 - 0.5 * 5])
    assert values.terms["a"].tolist() == [0.25, 0.5]
    assert values.terms["b"].tolist() == [2.5, 5.0]
    assert reward.weights == {"a": 2.0, "b": -0.5}


def test_normalised_terms_wait_for_their_base_deviation(images: Tensor) -> None:
    reward = WeightedReward([Term(Constant("a", 1), 3.0, normalize=True), Term(Constant("b", 1), 1.0)])
    assert reward.unmeasured == ("a",)
    with pytest.raises(RunError, match="'a' is normalized"):
        reward(images, ["x", "y"])
    ready = reward.scaled({"a": 0.1, "b": 99.0})
    assert ready.unmeasured == ()
    assert ready(images, ["x", "y"]).total.tolist() == pytest.approx([31 * 0.25, 31 * 0.5])
    assert reward.unmeasured == ("a",), "the first object is unchanged"


@pytest.mark.parametrize("scale", [0.0, float("nan"), float("inf"), -1.0])
def test_a_useless_base_deviation_is_refused(scale: float) -> None:
    with pytest.raises(RunError, match="cannot be normalized"):
        WeightedReward([Term(Constant("a", 1), normalize=True)]).scaled({"a": scale})


def test_gradient_of_the_total(images: Tensor) -> None:
    images.requires_grad_()
    reward = WeightedReward([Term(Constant("a", 1), 2.0), Term(Constant("b", 3), 1.0)])
    (gradient,) = torch.autograd.grad(reward(images, ["x", "y"]).total.sum(), images)
    torch.testing.assert_close(gradient, torch.full_like(images, 5 / 48))


def test_training_on_a_metric_without_gradient_is_refused(images: Tensor) -> None:
    reward = WeightedReward([Term(Constant("accuracy", 1, gradient=False))])
    reward(images, ["x", "y"])  # as a metric it is fine
    with pytest.raises(UsageError, match=r"'accuracy' has no gradient.*evaluation\.metrics"):
        reward(images.requires_grad_(), ["x", "y"])


def test_a_swapped_broadcast_is_an_error(images: Tensor) -> None:
    with pytest.raises(RunError, match=r"shape \(2, 1\) .* for 2 images"):
        WeightedReward([Term(Constant("a", 1, shape=(-1, 1)))])(images, ["x", "y"])


def test_no_terms_or_the_same_twice_are_refused() -> None:
    with pytest.raises(ValueError, match="one reward or more"):
        WeightedReward([])
    with pytest.raises(ValueError, match="each once"):
        WeightedReward([Term(Constant("a", 1)), Term(Constant("a", 2))])


def test_device_and_truncation_reach_every_term() -> None:
    first, second = Constant("a", 1), Constant("b", 1)
    reward = WeightedReward([Term(first), Term(second)])
    assert reward.to("meta") is reward
    assert (first.device, second.device) == ("meta", "meta")
    assert reward.truncated(["x", "y"]) == {"a": 2, "b": 2}


def test_from_a_recipe(images: Tensor) -> None:
    terms = [RewardTerm(name="brightness", weight=2.0), RewardTerm(name="colorfulness", normalize=True)]
    reward = WeightedReward.from_recipe(terms)
    assert isinstance(reward.terms[0].reward, Brightness)
    assert isinstance(reward.terms[1].reward, Colorfulness)
    assert reward.unmeasured == ("colorfulness",)
