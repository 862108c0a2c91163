"""SD 2 (v prediction), SDXL, SD3, FLUX and a single-file checkpoint through the commands: train, evaluate, sample,
export, plain diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from amsd.cli.app import app
from tests import ldm, pipelines

FAMILIES = {
    "sd2": lambda: pipelines.stable_diffusion(prediction_type="v_prediction"),
    "sdxl": pipelines.stable_diffusion_xl,
    "sd3": pipelines.stable_diffusion_3,
    "sd3-without-t5": lambda: pipelines.stable_diffusion_3(t5=False),
    "flux": pipelines.flux,
    "file": lambda: pipelines.stable_diffusion(attention=True),
}
FLOW = ("sd3", "sd3-without-t5", "flux")
WITHOUT = {"sd3-without-t5": {"text_encoder_3": None, "tokenizer_3": None}}
"""What plain diffusers has to be told of a folder without T5."""
RECIPE = """
[model]
{model}
parameterization = "{parameterization}"
lora = {{ rank = 4, alpha = 64.0 }}

[schedule]
num_inference_steps = 4

[guidance]
guidance_scale = 3.0

[method]
timesteps_per_trajectory = 2
per_sample_threshold_quantile = -1.0

[[reward]]
name = "brightness"

[prompts]
train = ["a red circle", "a cat"]
evaluation = ["a blue square", "a tree", "a dog"]

[optimizer]
learning_rate = 1e-2
prompts_per_step = 2
micro_batch = 2
warmup_steps = 0

[training]
steps = 2
checkpoint_every = 2

[evaluation]
samples_per_prompt = 2
scheduler = ["fine-tuning", "default"]
diversity = ["pixels"]
distance = ["pixels"]

[tracking]
mode = "disabled"
"""


def call(*arguments: str | Path) -> str:
    outcome = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return outcome.stdout


def pixels(picture: Any) -> Any:
    image = Image.open(picture) if isinstance(picture, Path) else picture
    return np.asarray(image).astype(int)


@pytest.mark.slow
@pytest.mark.parametrize("parameterization", ["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_goes_through_the_whole_command_line(family: str, parameterization: str, tmp_path: Path) -> None:
    model, run, recipe = tmp_path / "model", tmp_path / "run", tmp_path / "recipe.toml"
    original = FAMILIES[family]()
    original.save_pretrained(model)
    source = f'pretrained = "{model}"'
    if family == "flux":
        source += "\nsize = [16, 24]\nmax_sequence_length = 16\nembedded_guidance = 2.0"
    if family == "file":
        save_file(ldm.checkpoint(original), tmp_path / "model.safetensors")
        source = f'pretrained = "{tmp_path / "model.safetensors"}"\nconfig = "{model}"'
    text = RECIPE.format(model=source, parameterization=parameterization)
    if family == "sd3":
        text = text.replace("num_inference_steps = 4", "num_inference_steps = 4\nshift_terminal = 0.2")
    recipe.write_text(text, encoding="utf-8")

    plan = call("train", recipe, "--dry-run")
    denoiser = original.transformer if family in FLOW else original.unet
    count = sum(parameter.numel() for parameter in denoiser.parameters())
    assert f"{count:,}" in plan

    call("train", recipe, "--output", run)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2]
    assert all(np.isfinite(line["loss"]) and line["gradient_norm"] > 0 for line in steps)

    results = json.loads(call("eval", run, "--json"))
    assert list(results) == ["fine-tuning-eta0-cfg3-steps4", "default-eta0-cfg3-steps4"]
    for result in results.values():
        assert result["metrics"]["brightness"]["paired"]["difference"] != 0
        assert result["metrics"]["diversity/pixels"]["mean"] > 0
        assert len(result["metrics"]["kid/pixels"]["per_prompt"]) == 3
    assert (
        "kid/pixels"
        not in json.loads(call("eval", "base", "--recipe", recipe, "--json"))[next(iter(results))]["metrics"]
    )

    drawing = ("-p", "a big dog", "--count", "2", "--seed", "7", "--guidance-scale", "4", "--steps", "5")
    call("sample", run, *drawing, "--out", tmp_path / "tuned")
    call("sample", "base", "--recipe", recipe, *drawing, "--out", tmp_path / "base")
    ours = [pixels(path) for path in sorted((tmp_path / "tuned").glob("*.png"))]
    base = [pixels(path) for path in sorted((tmp_path / "base").glob("*.png"))]
    assert max(abs(a - b).max() for a, b in zip(ours, base, strict=True)) > 3

    call("export", run, "--to", tmp_path / "export")
    assert "| kid/pixels |" in (tmp_path / "export" / "README.md").read_text(encoding="utf-8")
    card = (tmp_path / "export" / "README.md").read_text(encoding="utf-8")
    assert ("text_encoder_3=None, tokenizer_3=None" in card) == (family in WITHOUT)
    assert ("Pass `eta=" in card) == (family not in FLOW)
    assert ("true_cfg_scale=3" in card) == (family == "flux")
    exported = DiffusionPipeline.from_pretrained(tmp_path / "export", **WITHOUT.get(family, {}))
    theirs = draw(exported, family)
    for one, other in zip(ours, theirs, strict=True):
        assert abs(one - other).max() <= 1  # merging rounds the last bit
    if parameterization == "lora":
        plain = DiffusionPipeline.from_pretrained(model, **WITHOUT.get(family, {}))
        plain.scheduler = exported.scheduler
        plain.load_lora_weights(tmp_path / "export", weight_name="pytorch_lora_weights.safetensors")
        for one, other in zip(ours, draw(plain, family), strict=True):
            assert abs(one - other).max() <= 1


def draw(pipeline: Any, family: str) -> list[Any]:
    generators = [torch.Generator().manual_seed(7 + number) for number in range(2)]
    guidance: dict[str, Any] = {"guidance_scale": 4.0}
    if family == "flux":
        guidance = {
            "guidance_scale": 2.0, "true_cfg_scale": 4.0, "negative_prompt": "", "height": 16, "width": 24,
            "max_sequence_length": 16,
        }  # fmt: skip
    pictures = pipeline(
        "a big dog", num_images_per_prompt=2, num_inference_steps=5, generator=generators, **guidance
    ).images
    return [pixels(picture) for picture in pictures]
