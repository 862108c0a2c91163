"""The commands that trained the embedded models, at a few steps: each stage, resumption, and what the loop promises."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from amsd.shapes.captions import parse_caption
from embedded.__main__ import app
from embedded.flow import draw_times
from embedded.student import CaptionTable, Student, fit, learning_rate


def small_student() -> Student:
    torch.manual_seed(0)
    return Student.fresh({"net": nn.Linear(2, 2)})


def run(path: Path, stop: int | None = None) -> Student:
    """Train a linear map towards the identity for 20 steps; stopped while step `stop` is saved, if one is given."""
    student = small_student()

    def loss(generator: torch.Generator) -> Tensor:
        data = torch.randn(8, 2, generator=generator)
        return (student.networks["net"](data) - data).square().mean()

    def snapshot(_: Student, step: int) -> None:
        if step == stop:
            raise KeyboardInterrupt

    fit(student, loss, path, steps=20, seed=3, peak=1e-2, every=5, snapshot=snapshot)
    return student


def test_a_stopped_training_goes_on_as_an_unbroken_one(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken.pt", stop=10)
    assert torch.load(tmp_path / "broken.pt", weights_only=True)["step"] == 10
    broken, straight = run(tmp_path / "broken.pt"), run(tmp_path / "straight.pt")
    for pairs in (
        zip(broken.parameters(), straight.parameters(), strict=True),
        zip(broken.average, straight.average, strict=True),
    ):
        assert all(torch.equal(one, other) for one, other in pairs)
    assert not torch.equal(straight.average[0], straight.parameters()[0])


def test_the_rate_is_free_of_the_total_before_the_tail() -> None:
    assert [learning_rate(step, 1000, 1.0) for step in (100, 200, 600)] == [
        learning_rate(step, 2000, 1.0) for step in (100, 200, 600)
    ]
    assert learning_rate(1000, 1000, 1.0) == pytest.approx(0.03)


def test_dropped_words_still_describe_the_scene() -> None:
    table = CaptionTable()
    labels = torch.tensor([[0, 1, 2], [3, 0, 0]]).repeat(500, 1)
    rows = table.draw(labels, torch.Generator().manual_seed(0))
    seen = {table.captions[row] for row in rows[::2].tolist()}
    assert {"two red squares", "two squares", "two red shapes", ""} <= seen
    assert all(parse_caption(caption).color in (None, "red") for caption in seen)


def test_most_times_are_noisy() -> None:
    times = draw_times(20_000, torch.Generator().manual_seed(0))
    assert float(times.min()) >= 0
    assert float(times.max()) <= 1
    # .35 * .1 uniform + .35 * .25 of shift 3 + .3 * (1 - Phi(logit(.9) - .3)) = .131
    assert float((times > 0.9).float().mean()) == pytest.approx(0.131, abs=0.01)
    assert float((times > 0.5).float().mean()) > 0.6


def tiny_state(folder: Path) -> Path:
    """A state folder with a cache of latents, as the stages before leave it."""
    folder.mkdir(parents=True)
    latents = torch.randn(64, 4, 8, 8, generator=torch.Generator().manual_seed(0)).half()
    labels_of = torch.stack([torch.arange(64) % 8, torch.arange(64) % 3, torch.arange(64) % 3], dim=1)
    save_file({"latents": latents, "labels": labels_of}, folder / "latents.safetensors")
    return folder


def test_the_flow_command_writes_a_pipeline_that_plain_diffusers_loads(tmp_path: Path) -> None:
    from diffusers import StableDiffusion3Pipeline

    state = tiny_state(tmp_path / "state")
    options = ["flow", str(tmp_path / "out"), "--state", str(state), "--batch", "4", "--every", "2"]
    only = ["--stage", "latents", "--stage", "transformer"]
    for steps in ("2", "3"):
        result = CliRunner().invoke(app, [*options, *only, "--steps", steps], catch_exceptions=False)
        assert result.exit_code == 0, result.output
    pipeline = StableDiffusion3Pipeline.from_pretrained(state / "snapshot", text_encoder_3=None, tokenizer_3=None)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(["a red circle"], num_inference_steps=2, max_sequence_length=0, output_type="pt").images
    assert images.shape == (1, 3, 32, 32)
    assert torch.load(state / "transformer.pt", weights_only=True)["step"] == 3


def test_the_unet_command_writes_a_pipeline_that_plain_diffusers_loads(tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    from amsd.shapes import pipeline_path
    from embedded.networks import build_vae

    state = tiny_state(tmp_path / "state")
    save_file({k: v.contiguous() for k, v in build_vae().state_dict().items()}, state / "vae.safetensors")
    (state / "classifier.safetensors").write_bytes((pipeline_path() / "classifier.safetensors").read_bytes())
    options = ["unet", str(tmp_path / "out"), "--state", str(state), "--batch", "4", "--steps", "2"]
    result = CliRunner().invoke(app, [*options, "--stage", "unet"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    pipeline = StableDiffusionPipeline.from_pretrained(state / "snapshot")
    assert pipeline.unet.config.block_out_channels == [32, 64]
    assert json.loads((state / "unet.json").read_text())["steps"] == 2
