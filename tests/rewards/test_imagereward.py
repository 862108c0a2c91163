"""ImageReward against outputs of the original code, through the checkpoint conversion and the tokenizer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from amsd.errors import UsageError
from amsd.rewards.imagereward import ImageReward, convert
from amsd.rewards.protocol import Reward
from tests.rewards import tiny
from tests.rewards.contract import RewardContract

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "imagereward.json").read_text())
TINY: dict[str, Any] = {
    "vision_width": 64, "vision_layers": 2, "vision_heads": 4, "text_width": 48, "text_layers": 2, "text_heads": 4,
}  # fmt: skip
REDUCED: dict[str, Any] = {"vision_layers": 2, "text_layers": 2}
IDS: list[list[int]] = GOLDEN["input_rule"]["input_ids"]


def word(token: int) -> str:
    return f"w{token}"


def prompt(ids: list[int]) -> str:
    """The prompt whose tokens are these ids; one that fills all 35 places gets a tail, which must be cut."""
    words = [word(token) for token in ids[1:] if token not in (0, 102)]
    return " ".join(words + ["w999"] * 5 if 0 not in ids else words)


@dataclass(frozen=True)
class Files:
    checkpoint: Path
    tokenizer: Path
    state: dict[str, torch.Tensor]

    def reward(self, architecture: dict[str, Any], **options: Any) -> ImageReward:
        return ImageReward(str(self.checkpoint), str(self.tokenizer), architecture=architecture, **options)


def write(folder: Path, shapes: dict[str, tuple[int, ...]]) -> Files:
    state = tiny.image_reward_checkpoint(shapes)
    torch.save(state, folder / "ImageReward.pt")
    words = {i: word(i) for i in range(30524)}
    return Files(folder / "ImageReward.pt", tiny.bert_folder(folder / "bert", words, 30524), state)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return write(tmp_path_factory.mktemp("imagereward"), tiny.image_reward_shapes(64, 2, 48, 2))


@pytest.fixture(scope="module")
def scorer(files: Files) -> Reward:
    return files.reward(TINY)


@pytest.fixture(scope="module")
def golden_images() -> torch.Tensor:
    return torch.stack([tiny.golden_image(i) for i in range(4)])


class TestContract(RewardContract):
    prompts = ("w1037 w4937", "w1996 w2033 w2070 w2107", "w2144")
    long_prompt = "w2000 " * 34

    @pytest.fixture
    def reward(self, scorer: Reward) -> Reward:
        return scorer


def test_the_fill_rule_gives_the_weights_of_the_golden_numbers(files: Files) -> None:
    variant = GOLDEN["variants"]["tiny"]
    assert len(files.state) == variant["state_dict_count"]
    for name, expected in variant["weight_spot_checks"].items():
        assert list(files.state[name].shape) == expected["shape"]
        np.testing.assert_allclose(files.state[name].flatten()[:3], expected["first3"], rtol=1e-6)
    total = sum(float(v.double().abs().sum()) for v in files.state.values() if v.is_floating_point())
    assert total == pytest.approx(variant["info"]["abs_sum_of_all_float_values"], rel=1e-8)


def test_scores_and_gradients_are_those_of_the_original(files: Files, golden_images: torch.Tensor) -> None:
    check_variant(files.reward(TINY), GOLDEN["variants"]["tiny"], golden_images)


@pytest.mark.slow
def test_scores_at_the_real_widths_are_those_of_the_original(tmp_path: Path, golden_images: torch.Tensor) -> None:
    files = write(tmp_path, tiny.image_reward_shapes(1024, 2, 768, 2))
    check_variant(files.reward(REDUCED), GOLDEN["variants"]["reduced"], golden_images)


def check_variant(reward: ImageReward, variant: dict[str, Any], images: torch.Tensor) -> None:
    expected = variant["float32"]
    variable = images.clone().requires_grad_()
    scores = reward(variable, [prompt(ids) for ids in IDS])
    np.testing.assert_allclose(scores.detach(), expected["reward_standardised"], atol=1e-5, rtol=0)
    (gradient,) = torch.autograd.grad(scores.sum(), variable)
    golden = expected["grad_image"]
    np.testing.assert_allclose(gradient.flatten(1).norm(dim=1), golden["norm_per_image"], rtol=1e-4)
    np.testing.assert_allclose(gradient[:, 0, 254:258, 254:258], golden["slice_c0_254_258_254_258"], atol=1e-6, rtol=0)
    np.testing.assert_allclose(gradient[:, 1, 0:4, 0:4], golden["slice_c1_0_4_0_4"], atol=1e-6, rtol=0)
    assert reward.truncated([prompt(ids) for ids in IDS]) == 1


def test_every_prompt_with_every_image(files: Files, golden_images: torch.Tensor) -> None:
    reward = files.reward(TINY)
    with torch.no_grad():
        table = torch.stack([reward(golden_images, [prompt(ids)] * 4) for ids in IDS])
    expected = GOLDEN["variants"]["tiny"]["reward_standardised_text_by_image"]
    np.testing.assert_allclose(table, expected, atol=1e-5, rtol=0)


def test_the_8_bit_path_scores_pictures_as_the_original_does(files: Files, golden_images: torch.Tensor) -> None:
    with torch.no_grad():
        scores = files.reward(TINY, eight_bit=True)(golden_images, [prompt(ids) for ids in IDS])
    expected = GOLDEN["variants"]["tiny"]["PIL_path"]["reward_standardised"]
    np.testing.assert_allclose(scores, expected, atol=1e-5, rtol=0)


def test_the_8_bit_path_refuses_to_be_trained_on(files: Files) -> None:
    with pytest.raises(UsageError, match="eight_bit"):
        files.reward(TINY, eight_bit=True)(torch.rand(1, 3, 32, 32, requires_grad=True), ["w1037"])


def test_every_name_of_the_published_checkpoint_is_converted() -> None:
    shapes = tiny.image_reward_shapes(8, 24, 8, 12, vocabulary=4)
    converted = convert({name: torch.empty(0) for name in shapes})
    assert len(converted) == len(shapes) - 4  # the two unused projections
    assert not [name for name in converted if not name.startswith(("vision.", "text.", "head."))]


def test_a_missing_and_a_foreign_key_are_named(files: Files, tmp_path: Path) -> None:
    state = dict(files.state)
    del state["mlp.layers.7.bias"]
    state["blip.visual_encoder.head.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "broken.pt")
    with pytest.raises(
        UsageError, match=r"missing: head\.layers\.7\.bias.*left over: blip\.visual_encoder\.head"
    ) as error:
        ImageReward(str(tmp_path / "broken.pt"), str(files.tokenizer), architecture=TINY)
    assert "option checkpoint" in str(error.value)


def test_an_empty_tokenizer_folder_is_refused(files: Files, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no tokenizer\.json or vocab\.txt"):
        ImageReward(str(files.checkpoint), str(tmp_path), architecture=TINY)


def test_a_tokenizer_of_another_size_is_refused(files: Files, tmp_path: Path) -> None:
    other = tiny.bert_folder(tmp_path / "bert", {}, 200)
    with pytest.raises(UsageError, match="200 tokens"):
        ImageReward(str(files.checkpoint), str(other), architecture=TINY)


def test_the_version_follows_the_weights(files: Files, tmp_path: Path) -> None:
    changed = dict(files.state)
    changed["mlp.layers.7.bias"] = changed["mlp.layers.7.bias"] + 1
    torch.save(changed, tmp_path / "changed.pt")
    one, same = files.reward(TINY).version, files.reward(TINY).version
    other = ImageReward(str(tmp_path / "changed.pt"), str(files.tokenizer), architecture=TINY).version
    assert one == same
    assert one != other
