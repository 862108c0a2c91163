"""Metrics of pyiqa as rewards. Importing pyiqa takes long: the real networks are tested in the slow session."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amsd.errors import RunError, UsageError
from amsd.rewards import pyiqa as module
from amsd.rewards.protocol import Reward
from amsd.rewards.pyiqa import PyIQAReward
from tests.rewards.contract import RewardContract

CONFIGS: dict[str, Any] = {
    "sharpness": {"metric_mode": "NR"},
    "blur": {"metric_mode": "NR", "lower_better": True},
    "clipscore": {"metric_mode": "NR"},
    "psnr": {"metric_mode": "FR"},
    "fid": {"metric_mode": "NR", "lower_better": True},
    "piqe": {"metric_mode": "NR", "lower_better": True},
    "mixed": {"metric_mode": "NR"},
}


class Scorer(nn.Module):
    """In the shape of pyiqa's InferenceModel: (B, 1) scores of images."""

    def __init__(self, metric: str, as_loss: bool) -> None:
        super().__init__()
        self.lower_better = bool(CONFIGS[metric].get("lower_better", False))
        self.as_loss, self.metric = as_loss, metric
        self.net = nn.Conv2d(3, 1, 3)

    def forward(self, images: Tensor, caption_list: list[str] | None = None) -> Tensor:
        if self.metric == "mixed":
            return self.net(images).mean()
        with torch.set_grad_enabled(self.as_loss):
            scores = self.net(images).square().mean((2, 3))
        return scores if caption_list is None else scores * torch.tensor([[len(c)] for c in caption_list])


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """pyiqa replaced by `Scorer`: amsd's side of the seam alone."""
    torch.manual_seed(0)
    weights = nn.Conv2d(3, 1, 3).state_dict()

    def build(name: str, metric: str, as_loss: bool, trust_pickle: bool, options: dict[str, Any]) -> Scorer:
        scorer = Scorer(metric, as_loss)
        scorer.net.load_state_dict(weights)
        return scorer

    monkeypatch.setattr(module, "_import", lambda: (types.SimpleNamespace(__version__="0"), CONFIGS))
    monkeypatch.setattr(module, "_build", build)


@pytest.mark.usefixtures("light")
class TestSeam(RewardContract):
    reads_prompts = False
    long_prompt = None

    @pytest.fixture
    def reward(self, light: None) -> Reward:
        return PyIQAReward("sharpness")


@pytest.mark.usefixtures("light")
def test_lower_better_is_turned_round() -> None:
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(PyIQAReward("blur")(images, ["", ""]), -PyIQAReward("sharpness")(images, ["", ""]))


@pytest.mark.usefixtures("light")
def test_prompts_go_to_the_metric_that_reads_them() -> None:
    images = torch.rand(1, 3, 8, 8).expand(2, -1, -1, -1)
    one, two = PyIQAReward("clipscore")(images, ["a", "aa"]).tolist()
    assert two == pytest.approx(2 * one)


@pytest.mark.usefixtures("light")
def test_training_on_a_metric_without_gradient_is_refused_and_watching_it_is_not() -> None:
    reward = PyIQAReward("piqe")
    assert reward(torch.rand(1, 3, 8, 8), [""]).shape == (1,)
    with pytest.raises(UsageError, match=r"'pyiqa:piqe' has no gradient.*evaluation\.metrics"):
        reward(torch.rand(1, 3, 8, 8, requires_grad=True), [""])


@pytest.mark.usefixtures("light")
@pytest.mark.parametrize(
    ("metric", "text"),
    [("psnr", "reference image"), ("fid", "sets of images"), ("sharpnes", "Did you mean sharpness"), ("zz", "Known: ")],
)
def test_metrics_that_cannot_score_an_image_are_refused(metric: str, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        PyIQAReward(metric)


@pytest.mark.usefixtures("light")
def test_a_metric_that_scores_the_batch_is_an_error() -> None:
    with pytest.raises(RunError, match="for 2 images"):
        PyIQAReward("mixed")(torch.rand(2, 3, 8, 8), ["", ""])


@pytest.fixture(scope="module")
def musiq() -> Reward:
    pytest.importorskip("pyiqa")
    torch.manual_seed(0)
    return PyIQAReward("musiq", pretrained=False)


@pytest.mark.slow
class TestMusiq(RewardContract):
    reads_prompts = False
    long_prompt = None
    tolerance = 1e-4

    @pytest.fixture
    def reward(self, musiq: Reward) -> Reward:
        return musiq


@pytest.mark.slow
def test_the_gradient_reaches_the_latents_through_a_decoder(musiq: Reward) -> None:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    decoder = AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    decoder.requires_grad_(False)
    latents = torch.randn(2, 4, 16, 16, requires_grad=True)
    images = (decoder.decode(latents).sample / 2 + 0.5).clamp(0, 1)
    (gradient,) = torch.autograd.grad(musiq(images, ["", ""]).sum(), latents)
    assert (gradient.flatten(1).norm(dim=1) > 0).all()


@pytest.mark.slow
def test_real_metrics_without_weights() -> None:
    pyiqa = pytest.importorskip("pyiqa")
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = -torch.as_tensor(pyiqa.create_metric("piqe", device="cpu")(images)).reshape(-1)
    torch.testing.assert_close(PyIQAReward("piqe")(images, ["", ""]), expected.float())
    with pytest.raises(UsageError, match="no gradient"):
        PyIQAReward("entropy")(images.requires_grad_(), ["", ""])
    with pytest.raises(UsageError, match="reference image"):
        PyIQAReward("ssim")


def test_the_license_is_stated_at_the_first_use_and_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_said", [])
    with caplog.at_level("WARNING", logger="amsd"):
        PyIQAReward("entropy")
        PyIQAReward("entropy")
    said = [record.getMessage() for record in caplog.records if "PolyForm-Noncommercial" in record.getMessage()]
    assert said == [module.LICENSE]


def test_without_pyiqa_one_line_names_both_ways_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(UsageError, match=r"uv pip install 'amsd.pyiqa.'") as refused:
        PyIQAReward("musiq")
    assert "evaluation.metrics = [" in str(refused.value)
    assert "\n" not in str(refused.value)
