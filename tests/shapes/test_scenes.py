import math

import pytest
import torch

from amsd.shapes.captions import BACKGROUND, COLORS, FORMS, SHAPES
from embedded.combinations import all_combinations
from embedded.quality import objects_in
from embedded.scenes import MARGIN, SIZE, Scenes, object_coverage, render, sample_scenes, scenes_of


def draw(count: int = 200, seed: int = 0) -> Scenes:
    return sample_scenes(all_combinations(), count, torch.Generator().manual_seed(seed))


def one(shape: str, form: str = "big", color: str = "red") -> Scenes:
    label = [torch.tensor([value]) for value in (list(COLORS).index(color), SHAPES.index(shape), FORMS.index(form))]
    return scenes_of(*label, torch.Generator().manual_seed(3))


def test_same_seed_same_images() -> None:
    assert torch.equal(render(draw()), render(draw()))
    assert not torch.equal(render(draw()), render(draw(seed=1)))


def test_images_stay_in_range_on_one_background() -> None:
    images = render(draw())
    assert images.shape == (200, 3, SIZE, SIZE)
    assert images.dtype == torch.float32
    assert images.min() >= 0.1 - 1e-6
    assert images.max() <= 0.9 + 1e-6
    uncovered = (object_coverage(draw()) == 0).unsqueeze(1).expand_as(images)
    assert (images[uncovered] == BACKGROUND).all()


@pytest.mark.parametrize(("shape", "area"), [("circle", math.pi), ("square", 4 * 0.92**2), ("triangle", 2.2 * 2 / 2)])
def test_drawn_area_is_the_shapes_area(shape: str, area: float) -> None:
    scenes = one(shape)
    expected = area * float(scenes.radius[0, 0]) ** 2
    assert float(object_coverage(scenes).sum()) == pytest.approx(expected, rel=0.03)


def test_objects_lie_inside_and_apart() -> None:
    scenes = draw(3000)
    present = scenes.radius > 0
    reach = (scenes.radius + MARGIN).unsqueeze(-1)
    inside = (scenes.center >= reach - 1e-4) & (scenes.center <= SIZE - reach + 1e-4)
    assert inside[present].all()
    pairs = present.all(1)
    assert torch.equal(pairs, scenes.form == FORMS.index("two"))
    distance = (scenes.center[pairs, 0] - scenes.center[pairs, 1]).norm(dim=-1)
    assert (distance > 2 * scenes.radius[pairs, 0]).all()


def test_position_is_the_center_of_what_is_drawn() -> None:
    scenes = draw(100)
    coverage = object_coverage(scenes)
    grid = (torch.arange(SIZE) + 0.5) / (SIZE / 2) - 1
    x = (coverage.sum(1) * grid).sum(1) / coverage.sum((1, 2))
    assert torch.allclose(scenes.position()[:, 0], x, atol=0.02)


def test_objects_are_counted() -> None:
    scenes = draw(60)
    expected = (scenes.radius > 0).sum(1).tolist()
    assert objects_in(render(scenes)) == expected
