"""The LAION aesthetic predictor against its definition."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from amsd.rewards.aesthetic import LaionAesthetic
from amsd.rewards.protocol import Reward
from tests.rewards import tiny
from tests.rewards.contract import RewardContract


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("aesthetic")
    return tiny.aesthetic_head(folder / "head.pth"), tiny.clip_folder(folder / "clip")


class TestContract(RewardContract):
    reads_prompts = False
    long_prompt = None

    @pytest.fixture
    def reward(self, files: tuple[Path, Path]) -> Reward:
        return LaionAesthetic(*map(str, files))


def test_score_is_the_product_of_the_matrices_on_the_unit_embedding(files: tuple[Path, Path]) -> None:
    from transformers import CLIPModel

    from amsd.rewards.preprocess import ClipPixels

    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    model = CLIPModel.from_pretrained(files[1]).eval()
    head = torch.load(files[0], weights_only=True)
    with torch.no_grad():
        x = model.get_image_features(ClipPixels(32)(images)).pooler_output
        x = x / x.norm(dim=1, keepdim=True)
        for layer in (0, 2, 4, 6, 7):
            x = x @ head[f"layers.{layer}.weight"].T + head[f"layers.{layer}.bias"]
    torch.testing.assert_close(LaionAesthetic(*map(str, files))(images, [""] * 3), x[:, 0], atol=1e-5, rtol=1e-5)
