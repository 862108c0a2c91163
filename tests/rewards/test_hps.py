"""HPS v2.1 against OpenCLIP's own pieces put together by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from amsd.errors import UsageError
from amsd.rewards.hps import HPSv21
from amsd.rewards.protocol import Reward
from tests.rewards import tiny
from tests.rewards.contract import RewardContract

pytest.importorskip("open_clip")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tiny.open_clip_files(tmp_path_factory.mktemp("hps"))


def build(files: tuple[Path, Path], **options: object) -> HPSv21:
    return HPSv21(str(files[1]), str(files[0]), **options)  # type: ignore[arg-type]


class TestContract(RewardContract):
    @pytest.fixture
    def reward(self, files: tuple[Path, Path]) -> Reward:
        return build(files)


def test_score_is_the_cosine_of_openclip_s_features(files: tuple[Path, Path]) -> None:
    import json

    import open_clip
    from PIL import Image
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

    model = open_clip.CLIP(**json.loads(files[0].read_text())).eval()
    model.load_state_dict(torch.load(files[1], weights_only=True)["state_dict"])
    original = Compose(
        [
            Resize(32, InterpolationMode.BICUBIC), CenterCrop(32), ToTensor(),
            Normalize(open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD),
        ]
    )  # fmt: skip
    pictures = torch.randint(0, 256, (2, 3, 48, 64), generator=torch.Generator().manual_seed(0)) / 255
    prompts = ["an oil painting of a fox", "3 cats, 4K"]
    images = [Image.fromarray((p * 255).round().byte().permute(1, 2, 0).numpy()) for p in pictures]
    with torch.no_grad():
        seen = model.encode_image(torch.stack([original(image) for image in images]))
        expected = torch.cosine_similarity(seen, model.encode_text(open_clip.tokenize(prompts)))
    torch.testing.assert_close(build(files, eight_bit=True)(pictures, prompts), expected, atol=1e-5, rtol=0)


def test_older_checkpoints_may_store_the_attention_mask(files: tuple[Path, Path], tmp_path: Path) -> None:
    state = torch.load(files[1], weights_only=True)["state_dict"]
    torch.save({"state_dict": state | {"attn_mask": torch.zeros(77, 77)}}, tmp_path / "older.pt")
    assert build((files[0], tmp_path / "older.pt")).version == build(files).version


def test_an_unknown_architecture_is_refused(files: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match="no such architecture"):
        HPSv21(str(files[1]), "ViT-Z-99")
    with pytest.raises(UsageError, match="no such file"):
        HPSv21(str(files[1]), "missing.json")
    with pytest.raises(UsageError, match="do not fit"):
        HPSv21(str(files[1]), "ViT-B-32")
