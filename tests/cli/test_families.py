"""SD 2 (v prediction), SDXL, SD3, FLUX and a single-file checkpoint through the commands: train, evaluate, sample,
export, plain diffusers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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

NO_T5: dict[str, Any] = {"text_encoder_3": None, "tokenizer_3": None}


@dataclass(frozen=True)
class Case:
    """A pipeline, what its recipe says of it, and how plain diffusers has to be called for the same pictures."""

    make: Callable[[], Any]
    model: str = ""
    schedule: str = ""
    without: Mapping[str, Any] = field(default_factory=dict)
    """What plain diffusers has to be told of the folder."""
    call: Mapping[str, Any] = field(default_factory=lambda: {"guidance_scale": 4.0})

    @property
    def flux(self) -> bool:
        return "true_cfg_scale" in self.call


def flux_case(guided: bool, height: int, width: int) -> Case:
    """FLUX's guidance is an input of the dev model; the recipe's is a second branch on top of it."""
    embedded = "\nembedded_guidance = 2.0" if guided else ""
    return Case(
        lambda: pipelines.flux(guided=guided),
        f"size = [{height}, {width}]\nmax_sequence_length = 16{embedded}",
        call={
            "guidance_scale": 2.0, "true_cfg_scale": 4.0, "negative_prompt": "", "height": height, "width": width,
            "max_sequence_length": 16,
        },
    )  # fmt: skip


FAMILIES = {
    "sd2": Case(lambda: pipelines.stable_diffusion(prediction_type="v_prediction")),
    "sdxl": Case(pipelines.stable_diffusion_xl),
    "sd3": Case(pipelines.stable_diffusion_3, schedule="shift_terminal = 0.2"),
    "sd3-without-t5": Case(lambda: pipelines.stable_diffusion_3(t5=False), without=NO_T5),
    "sd3-t5-left-out": Case(
        lambda: pipelines.stable_diffusion_3(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, shift=3.0),
        "t5 = false\nsize = [24, 16]\nmax_sequence_length = 3", "eta = 0.7", NO_T5,
        {"guidance_scale": 4.0, "height": 24, "width": 16, "max_sequence_length": 3},
    ),
    "flux": flux_case(True, 16, 24),
    "flux-schnell": flux_case(False, 24, 16),
    "file": Case(lambda: pipelines.stable_diffusion(attention=True)),
}  # fmt: skip
ONE_EACH = {"sd3-t5-left-out": "lora", "flux-schnell": "full"}
COMBINED = [
    *((name, each) for name in FAMILIES for each in ("full", "lora") if ONE_EACH.get(name, each) == each),
    ("sd3-t5-left-out", "offset"), ("flux", "offset"),
]  # fmt: skip
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
@pytest.mark.parametrize(("family", "parameterization"), COMBINED)
def test_a_family_goes_through_the_whole_command_line(family: str, parameterization: str, tmp_path: Path) -> None:
    model, run, recipe = tmp_path / "model", tmp_path / "run", tmp_path / "recipe.toml"
    case = FAMILIES[family]
    original = case.make()
    original.save_pretrained(model)
    source = f'pretrained = "{model}"\n{case.model}'
    if family == "file":
        save_file(ldm.checkpoint(original), tmp_path / "model.safetensors")
        source = f'pretrained = "{tmp_path / "model.safetensors"}"\nconfig = "{model}"'
    text = RECIPE.format(model=source, parameterization=parameterization)
    text = text.replace("num_inference_steps = 4", f"num_inference_steps = 4\n{case.schedule}")
    recipe.write_text(text, encoding="utf-8")

    plan = call("train", recipe, "--dry-run")
    denoiser = getattr(original, "transformer", None) or original.unet
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

    if parameterization == "offset":
        refused = CliRunner().invoke(app, ["export", str(run), "--to", str(tmp_path / "export")])
        assert "cannot be merged into one network" in str(refused.exception)
        return
    call("export", run, "--to", tmp_path / "export")
    assert "| kid/pixels |" in (tmp_path / "export" / "README.md").read_text(encoding="utf-8")
    card = (tmp_path / "export" / "README.md").read_text(encoding="utf-8")
    assert ("text_encoder_3=None, tokenizer_3=None" in card) == bool(case.without)
    assert ("Pass `eta=" in card) == hasattr(original, "unet")
    assert ("true_cfg_scale=3" in card) == case.flux
    exported = DiffusionPipeline.from_pretrained(tmp_path / "export", **case.without)
    theirs = draw(exported, case)
    for one, other in zip(ours, theirs, strict=True):
        assert abs(one - other).max() <= 1  # merging rounds the last bit
    if parameterization == "lora":
        plain = DiffusionPipeline.from_pretrained(model, **case.without)
        plain.scheduler = exported.scheduler
        plain.load_lora_weights(tmp_path / "export", weight_name="pytorch_lora_weights.safetensors")
        for one, other in zip(ours, draw(plain, case), strict=True):
            assert abs(one - other).max() <= 1


def draw(pipeline: Any, case: Case) -> list[Any]:
    generators = [torch.Generator().manual_seed(7 + number) for number in range(2)]
    pictures = pipeline(
        "a big dog", num_images_per_prompt=2, num_inference_steps=5, generator=generators, **case.call
    ).images
    return [pixels(picture) for picture in pictures]
