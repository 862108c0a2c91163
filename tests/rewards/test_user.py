"""A user's function or network as a reward."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
import torch

from amsd.errors import UsageError
from amsd.rewards.calling import WrongScores
from amsd.rewards.protocol import Reward
from amsd.rewards.user import FunctionReward
from tests.rewards.contract import RewardContract

SOURCE = """
import torch

def redness(images, prompts, power=1.0):
    return (images[:, 0] ** power).mean((1, 2)) * torch.tensor([float(len(p)) for p in prompts])

def per_batch(images, prompts):
    return images.mean()

def as_list(images, prompts):
    return [0.5] * len(images)

def cut(images, prompts):
    return images.detach().mean((1, 2, 3))

def broken(images, prompts):
    return images.mean((1, 2, 3)) * (1 / 0)

class Network(torch.nn.Module):
    def __init__(self, width=2):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Conv2d(3, width, 3)
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, images, prompts):
        return self.dropout(self.layer(images)).square().mean((1, 2, 3))

answer = 42
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("user") / "my_rewards.py"
    path.write_text(textwrap.dedent(SOURCE))
    return path


class TestFunction(RewardContract):
    long_prompt = None

    @pytest.fixture
    def reward(self, file: Path) -> Reward:
        return FunctionReward(f"{file}:redness", power=2.0)


class TestNetwork(RewardContract):
    reads_prompts = False
    long_prompt = None

    @pytest.fixture
    def reward(self, file: Path) -> Reward:
        return FunctionReward(f"{file}:Network", width=4)


def test_options_reach_the_function(file: Path) -> None:
    images = torch.full((1, 3, 2, 2), 0.5)
    assert FunctionReward(f"{file}:redness", power=3.0)(images, ["abc"]).item() == pytest.approx(3 * 0.125)


def test_a_module_of_the_working_directory_is_found(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    reward = FunctionReward("my_rewards:redness")
    assert reward.name == "python:my_rewards:redness"
    assert reward(torch.ones(1, 3, 2, 2), ["ab"]).item() == pytest.approx(2.0)


def test_one_number_for_a_batch_is_explained(file: Path) -> None:
    with pytest.raises(
        WrongScores, match=r"per_batch' returned a tensor of shape \(\) .* for 2 images.*images_per_call = 1"
    ):
        FunctionReward(f"{file}:per_batch")(torch.rand(2, 3, 4, 4), ["", ""])


def test_with_one_image_per_call_a_number_will_do(file: Path) -> None:
    images = torch.rand(3, 3, 4, 4)
    found = FunctionReward(f"{file}:per_batch", images_per_call=1)(images, ["", "", ""])
    torch.testing.assert_close(found, images.mean((1, 2, 3)))
    pairs = FunctionReward(f"{file}:as_list", images_per_call=2)(images, ["", "", ""])
    assert pairs.tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("options", [{"images_per_call": 0}, {"images_per_call": True}, {"groupwise": 1},
                                     {"images_per_call": 2, "groupwise": True}])  # fmt: skip
def test_wrong_ways_of_calling_are_refused(file: Path, options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"options? (images_per_call|groupwise)"):
        FunctionReward(f"{file}:redness", **options)  # type: ignore[arg-type]


def test_a_function_without_gradient_may_be_watched(file: Path) -> None:
    assert FunctionReward(f"{file}:cut")(torch.rand(2, 3, 4, 4), ["", ""]).shape == (2,)


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("FILE:missing", "nothing called 'missing'"),
        ("FILE:answer", "is a int"),
        ("no_such_module_here:f", "no module 'no_such_module_here'"),
        ("missing.py:f", "no file 'missing.py'"),
        ("os.path", "expected python:MODULE:FUNCTION"),
    ],
)
def test_wrong_targets_are_explained(file: Path, target: str, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        FunctionReward(target.replace("FILE", str(file)))


def test_a_module_that_misses_a_package_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_more.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="imports 'a_package_that_is_not_there'"):
        FunctionReward("needs_more:f")


def test_the_version_follows_source_and_options(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "my_rewards.py"
    other.write_text(file.read_text() + "\n# changed\n")
    versions = {
        FunctionReward(f"{file}:redness").version,
        FunctionReward(f"{other}:redness").version,
        FunctionReward(f"{file}:redness", power=2.0).version,
        FunctionReward(f"{file}:Network").version,
    }
    assert len(versions) == 4
    assert FunctionReward(f"{file}:redness").version in versions
