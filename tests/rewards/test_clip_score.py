"""CLIP score and PickScore against transformers' own pieces put together by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from amsd.errors import UsageError
from amsd.rewards.clip_score import CLIPScore
from amsd.rewards.pickscore import PickScore
from amsd.rewards.protocol import Reward
from tests.rewards import tiny
from tests.rewards.contract import RewardContract

PROMPTS = ["a red circle", "two blue triangles on a table", "Small Star, très joli!"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.clip_folder(tmp_path_factory.mktemp("clip"))


class TestCLIPScore(RewardContract):
    @pytest.fixture
    def reward(self, folder: Path) -> Reward:
        return CLIPScore(str(folder))


class TestPickScore(RewardContract):
    @pytest.fixture
    def reward(self, folder: Path) -> Reward:
        return PickScore(str(folder), tokenizer=str(folder))


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    """(3, 3, 40, 56) in 8 bits: neither square nor of the network's size."""
    return torch.randint(0, 256, (3, 3, 40, 56), generator=torch.Generator().manual_seed(1)) / 255


def by_hand(folder: Path, pictures: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Cosines from transformers' own processor (Pillow), tokenizer and feature methods; and the logit scale."""
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(folder).eval()
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    images = [Image.fromarray((p * 255).round().byte().permute(1, 2, 0).numpy()) for p in pictures]
    tokenizer = CLIPTokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=77)
    with torch.no_grad():
        seen = model.get_image_features(**processor(images, return_tensors="pt")).pooler_output
        # Each prompt alone and without padding: what padding does must not matter.
        meant = [model.get_text_features(**tokenizer(p, return_tensors="pt")).pooler_output for p in PROMPTS]
        return torch.cosine_similarity(seen, torch.cat(meant)), float(model.logit_scale.exp())


def test_clip_score_is_the_cosine_of_transformers_features(folder: Path, pictures: torch.Tensor) -> None:
    expected, _ = by_hand(folder, pictures)
    torch.testing.assert_close(CLIPScore(str(folder), eight_bit=True)(pictures, PROMPTS), expected, atol=1e-5, rtol=0)


def test_the_float_path_stays_near_the_8_bit_path(folder: Path, pictures: torch.Tensor) -> None:
    """Noise is the worst picture there is for rounding; photographs lie far nearer."""
    expected, _ = by_hand(folder, pictures)
    torch.testing.assert_close(CLIPScore(str(folder))(pictures, PROMPTS), expected, atol=0.02, rtol=0)


def test_pickscore_is_the_scaled_cosine(folder: Path, pictures: torch.Tensor) -> None:
    expected, scale = by_hand(folder, pictures)
    scores = PickScore(str(folder), tokenizer=str(folder), eight_bit=True)(pictures, PROMPTS)
    torch.testing.assert_close(scores, scale * expected, atol=1e-3, rtol=0)


def test_mixed_precision_around_a_reward_changes_nothing(folder: Path, pictures: torch.Tensor) -> None:
    reward = CLIPScore(str(folder))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = reward(pictures, PROMPTS)
    assert torch.equal(mixed, reward(pictures, PROMPTS))


def test_prompts_are_cut_at_77_tokens(folder: Path) -> None:
    reward = CLIPScore(str(folder))
    fits, too_long = "a" * 75, "a" * 76  # one token per letter, start and end
    assert reward.truncated([fits]) == 0
    assert reward.truncated([fits, too_long]) == 1
    images = torch.rand(2, 3, 32, 32)
    assert reward(images, [fits, too_long]).isfinite().all()


def test_versions_tell_models_and_paths_apart(folder: Path, tmp_path: Path) -> None:
    other = tiny.clip_folder(tmp_path / "other", seed=1)
    versions = {
        CLIPScore(str(folder)).version,
        CLIPScore(str(other)).version,
        CLIPScore(str(folder), eight_bit=True).version,
    }
    assert len(versions) == 3
    assert CLIPScore(str(folder)).version in versions


def test_a_model_without_some_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    broken.mkdir()
    for file in folder.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    state = load_file(broken / "model.safetensors")
    del state["visual_projection.weight"]
    save_file(state, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"missing: visual_projection\.weight"):
        CLIPScore(str(broken))


def test_images_and_prompts_must_pair_up(folder: Path) -> None:
    reward = CLIPScore(str(folder))
    with pytest.raises(ValueError, match="1 prompts for 2 images"):
        reward(torch.rand(2, 3, 32, 32), ["one"])
    with pytest.raises(ValueError, match="expected"):
        reward(torch.rand(3, 32, 32), ["one"])


@pytest.mark.slow
def test_the_whole_vocabulary_is_tokenized_as_by_openclip(tmp_path: Path) -> None:
    """OpenCLIP ships CLIP's real byte-pair merges; its own tokenizer is the independent computation."""
    import gzip
    import json

    from open_clip.tokenizer import SimpleTokenizer, default_bpe

    from amsd.rewards.tokens import load_clip_tokenizer

    original = SimpleTokenizer()
    with gzip.open(default_bpe(), "rt", encoding="utf-8") as stream:
        merges = stream.read().split("\n")[1 : 49152 - 256 - 2 + 1]
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    (tmp_path / "vocab.json").write_text(json.dumps({names.get(t, t): i for t, i in original.encoder.items()}))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    tokenizer = load_clip_tokenizer(str(tmp_path), "test", 77, 49408)
    prompts = [*PROMPTS, "An oil painting of 3 cats, 4K; by O'Keeffe", "word " * 100]
    tokens = tokenizer(prompts, torch.device("cpu"))
    for row, mask, expected in zip(tokens.ids, tokens.mask, original(prompts), strict=True):
        count = int(mask.sum())
        assert row[:count].tolist() == expected[:count].tolist()
        assert expected[count:].sum() == 0
    assert tokenizer.truncated(prompts) == 1


def test_the_table_builds_it_from_a_recipe_s_options(folder: Path) -> None:
    from amsd.rewards.table import resolve_embedder, resolve_reward

    assert resolve_reward("clip-score", {"model": str(folder)}).name == "clip-score"
    assert resolve_embedder("clip", {"model": str(folder)}).name == "clip"
    with pytest.raises(UsageError, match="no such folder"):
        resolve_reward("clip-score", {"model": "./missing"})
    with pytest.raises(UsageError, match="Did you mean 'model'"):
        resolve_reward("clip-score", {"modell": str(folder)})
