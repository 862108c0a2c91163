from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from amsd.rewards import table
from amsd.shapes import rewards
from amsd.shapes.captions import FORMS, SHAPES
from amsd.shapes.rewards import ShapesEmbedder, objectness
from embedded.classifier import measure
from embedded.combinations import all_combinations, attributes_of, captions
from embedded.scenes import Scenes, render, sample_scenes

COUNT = 24
REWARDS: dict[str, Any] = {
    name: getattr(rewards, row.target.partition(":")[2])
    for name, row in table.REWARDS.items()
    if name.startswith("shapes:")
}
DIFFERENTIABLE = ("shapes:right", "shapes:area", "shapes:roundness", "shapes:alignment")


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return sample_scenes(all_combinations(), COUNT, torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def images(scenes: Scenes) -> Tensor:
    noise = torch.randn(COUNT, 3, 32, 32, generator=torch.Generator().manual_seed(6))
    return (render(scenes) + 0.03 * noise).clamp(0, 1)


@pytest.fixture(scope="module")
def prompts(scenes: Scenes) -> list[str]:
    labels = zip(scenes.color.tolist(), scenes.shape.tolist(), scenes.form.tolist(), strict=True)
    return captions(list(labels))


@pytest.mark.parametrize("name", REWARDS)
def test_scores_are_bounded_float32_and_pairwise(name: str, images: Tensor, prompts: list[str]) -> None:
    reward = REWARDS[name]()
    assert reward.name == name
    assert reward.to("cpu") is reward
    assert reward.truncated(prompts) == 0
    extremes = torch.stack([torch.zeros(3, 32, 32), torch.ones(3, 32, 32), torch.full((3, 32, 32), 0.5)])
    random = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    everything = torch.cat([images, extremes, random])
    scores = reward(everything, [*prompts, *["a red circle"] * 8])
    assert scores.shape == (COUNT + 8,)
    assert scores.dtype == torch.float32
    assert scores.isfinite().all()
    assert scores.min() >= (-1 if name == "shapes:right" else 0)
    assert scores.max() <= 1 + 1e-6
    single = torch.cat([reward(images[i : i + 1], prompts[i : i + 1]) for i in range(4)])
    assert torch.allclose(scores[:4], single, atol=1e-5)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradient_agrees_with_finite_differences(name: str, images: Tensor, prompts: list[str]) -> None:
    reward = REWARDS[name]()
    # Captions that the images do not satisfy: at the optimum of a probability there is no slope to compare.
    wrong = prompts[1:] + prompts[:1]
    inputs = images.clamp(0.05, 0.95).requires_grad_()
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    gradient = torch.autograd.grad(reward(inputs, wrong).sum(), inputs)[0]
    assert gradient.abs().amax((1, 2, 3)).min() > 0
    step = 2e-3
    with torch.no_grad():
        ahead, behind = reward(inputs + step * direction, wrong), reward(inputs - step * direction, wrong)
    slope = ((ahead - behind) / (2 * step)).double()
    expected = (gradient * direction).sum((1, 2, 3)).double()
    assert float((slope - expected).norm()) < 0.03 * float(expected.norm()) + 1e-3


def test_gradient_is_finite_on_an_empty_image() -> None:
    for name in DIFFERENTIABLE:
        image = torch.full((1, 3, 32, 32), 0.5, requires_grad=True)
        gradient = torch.autograd.grad(REWARDS[name]()(image, ["a red circle"]).sum(), image)[0]
        assert gradient.isfinite().all(), name


def test_right_follows_the_objects_and_mirrors(scenes: Scenes) -> None:
    images = render(scenes)
    right = REWARDS["shapes:right"]()
    scores = right(images, [""] * COUNT)
    assert torch.allclose(right(images.flip(-1), [""] * COUNT), -scores, atol=1e-5)
    assert torch.corrcoef(torch.stack([scores, scenes.position()[:, 0]]))[0, 1] > 0.99


def test_area_orders_small_two_big(scenes: Scenes) -> None:
    area = REWARDS["shapes:area"]()(render(scenes), [""] * COUNT)
    small, big, two = (area[scenes.form == FORMS.index(form)].mean() for form in ("small", "big", "two"))
    assert small < two < big


def test_roundness_orders_shapes() -> None:
    scenes = sample_scenes([c for c in all_combinations() if c[2] == 1], 90, torch.Generator().manual_seed(2))
    roundness = REWARDS["shapes:roundness"]()(render(scenes), [""] * 90)
    circle, square, triangle = (roundness[scenes.shape == i].mean() for i in range(len(SHAPES)))
    assert circle > square > triangle
    ideal = torch.tensor([1.0, 3 / torch.pi])
    assert torch.allclose(torch.stack([circle, square]), ideal, atol=0.08)


def test_alignment_and_accuracies_read_the_caption(scenes: Scenes) -> None:
    images = render(scenes)
    right = [attributes_of(c).caption() for c in zip(*(x.tolist() for x in labels(scenes)), strict=True)]
    assert (REWARDS["shapes:alignment"]()(images, right) > 0.9).all()
    assert (REWARDS["shapes:accuracy"]()(images, right) == 1).all()
    other = ["a big red circle" if "blue" in caption else "two blue squares" for caption in right]
    assert (REWARDS["shapes:color"]()(images, other) == 0).all()
    assert (REWARDS["shapes:alignment"]()(images, other) < 0.8).all()
    assert (REWARDS["shapes:alignment"]()(images, [""] * COUNT) == 1).all()


def labels(scenes: Scenes) -> tuple[Tensor, Tensor, Tensor]:
    return scenes.color, scenes.shape, scenes.form


def test_open_attributes_are_not_judged() -> None:
    scenes = sample_scenes([(0, 0, 0)], 4, torch.Generator().manual_seed(0))
    images = render(scenes)
    assert (REWARDS["shapes:accuracy"]()(images, ["a circle"] * 4) == 1).all()
    assert (REWARDS["shapes:form"]()(images, ["a red shape"] * 4) == 1).all()
    assert (REWARDS["shapes:form"]()(images, ["two red shapes"] * 4) == 0).all()


def test_errors_name_the_value(images: Tensor) -> None:
    with pytest.raises(ValueError, match="1 prompts for 24 images"):
        REWARDS["shapes:right"]()(images, ["a red circle"])
    with pytest.raises(ValueError, match="a cat"):
        REWARDS["shapes:alignment"]()(images[:1], ["a cat"])
    with pytest.raises(ValueError, match="ballast"):
        REWARDS["shapes:right"](ballast=0.0)
    with pytest.raises(FileNotFoundError, match="classifier"):
        REWARDS["shapes:alignment"](weights=Path("nowhere.safetensors"))


def test_objectness_is_zero_on_the_background_and_one_at_the_corners() -> None:
    corners = torch.tensor([[0.5] * 3, [0.0] * 3, [1.0, 0.0, 1.0]]).view(3, 3, 1, 1)
    assert torch.allclose(objectness(corners).flatten(), torch.tensor([0.0, 1.0, 1.0]))


def test_classifier_reads_fresh_renders() -> None:
    shares = measure(ShapesEmbedder().classifier, seed=1234, count=600)
    assert min(shares.values()) >= 0.98, shares


def test_embedder_sees_color_and_position(images: Tensor) -> None:
    embedder = ShapesEmbedder()
    embeddings = embedder(images)
    assert embedder.name == "shapes:classifier"
    assert len(embedder.version) == 12
    assert embeddings.shape == (COUNT, 64)
    assert torch.allclose(embeddings[:2], embedder(images[:2]), atol=1e-4)
    single = images[:1]
    moved = (embedder(single.roll(12, -1)) - embedder(single)).norm() / embeddings.norm(dim=1).mean()
    assert moved > 0.1, "diversity would not see objects that all moved to one side"
