"""Pictures land where they were promised, pixel for pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from amsd.evaluation.pictures import grid, save_pictures, side_by_side
from amsd.evaluation.result import EvaluationResult


def pictures(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def result(kept: torch.Tensor | None) -> EvaluationResult:
    return EvaluationResult("setting", {}, "0", ("a", "b"), {}, pictures=kept)


def test_one_file_per_sample_and_a_grid(tmp_path: Path) -> None:
    kept = pictures(2, 3, 3, 8, 8)
    folder = save_pictures(result(kept), tmp_path / "samples")
    assert folder == tmp_path / "samples" / "setting"
    expected = {f"p{p:03d}-s{s}.png" for p in range(2) for s in range(3)} | {"grid.png"}
    assert {path.name for path in folder.iterdir()} == expected
    assert np.array_equal(np.asarray(Image.open(folder / "p001-s2.png")), kept[1, 2].permute(1, 2, 0).numpy())
    assert Image.open(folder / "grid.png").size == (3 * 8 + 2 * 2, 2 * 8 + 2)


def test_saving_again_replaces_all(tmp_path: Path) -> None:
    save_pictures(result(pictures(2, 3, 3, 8, 8)), tmp_path)
    save_pictures(result(pictures(1, 1, 3, 8, 8)), tmp_path)
    assert {path.name for path in (tmp_path / "setting").iterdir()} == {"p000-s0.png", "grid.png"}


@pytest.mark.parametrize("kept", [None, torch.zeros(0, 1, 3, 8, 8, dtype=torch.uint8)])
def test_without_pictures_nothing_is_written(tmp_path: Path, kept: torch.Tensor | None) -> None:
    assert save_pictures(result(kept), tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_grid_has_a_prompt_per_row_and_zooms_by_whole_pixels() -> None:
    kept = pictures(2, 3, 3, 4, 6)
    image = np.asarray(grid(kept, zoom=2))
    row, column = 1, 2
    cell = image[row * 10 : row * 10 + 8, column * 14 : column * 14 + 12]
    assert np.array_equal(cell[::2, ::2], kept[row, column].permute(1, 2, 0).numpy())
    assert np.array_equal(cell[::2, ::2], cell[1::2, 1::2])


def test_side_by_side_has_the_base_above_under_its_label() -> None:
    base, tuned = pictures(3, 3, 32, 32), pictures(3, 3, 32, 32, seed=1)
    image = np.asarray(side_by_side(base, tuned))
    half = image.shape[0] // 2
    for part, expected in ((image[:half], base), (image[half:], tuned)):
        first = part[-128:, :128]
        assert np.array_equal(first[::4, ::4], expected[0].permute(1, 2, 0).numpy())
        assert (part[:-128] < 128).any(), "a label stands above the row"
    assert image.shape[1] == 3 * 128 + 2 * 2


def test_side_by_side_wants_equal_shapes() -> None:
    with pytest.raises(ValueError, match="two equal shapes"):
        side_by_side(pictures(2, 3, 8, 8), pictures(3, 3, 8, 8))


def test_prompts_stand_above_their_columns_and_long_ones_are_cut() -> None:
    base = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    plain = side_by_side(base, base)
    named = side_by_side(base, base, ["a red circle", "word " * 200])
    assert named.width == plain.width
    head = named.height - plain.height
    assert 30 < head < 120
    strip = np.asarray(named.convert("L"))[:head]
    middle = named.width // 2
    assert (strip[:, :middle] < 128).any()
    assert (strip[:, middle:] < 128).sum() > (strip[:, :middle] < 128).sum()
    assert (np.asarray(named)[head:] == np.asarray(plain)).all()
