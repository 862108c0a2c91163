"""The plan of a run: known sizes of Stable Diffusion 1.5, counts by hand, a real adapter on an empty network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from typer.testing import CliRunner

from amsd.cli.app import app
from amsd.diffusion.loading import load_family
from amsd.diffusion.parameterizations import build_policy
from amsd.errors import UsageError
from amsd.experiment.plan import make_plan
from amsd.experiment.rehearsal import Rehearsal, can_try
from amsd.recipe import load_recipe
from tests import pipelines

SD15_UNET = 859_520_964
"""Parameters of Stable Diffusion 1.x's UNet, as its published weights have them."""


def test_sd15_needs_no_download_to_be_planned() -> None:
    plan = make_plan(load_recipe("sd15-am", ["model.precision=fp32"]), processes=5)
    assert plan.denoiser_parameters == plan.trained_parameters == SD15_UNET
    # float32: the frozen copy and the two other networks; weight, gradient and two moments of the trained one.
    expected = 4 * (SD15_UNET + 123_060_480 + 83_653_863) + 16 * SD15_UNET
    assert plan.memory_bytes == expected
    text = dict(plan.lines())
    assert f"{SD15_UNET:,} parameters (100.00%" in text["trained"]
    assert "stable-diffusion-v1-5/stable-diffusion-v1-5" in text["download"]
    assert "4.26 GB" in text["download"]
    assert text["batch"].startswith("125 trajectories per step: 5 processes x 25, 5 at a time in the loss")
    assert text["checkpoints"].startswith("5, ")
    # A forward pass of SD 1.5 at 64 x 64 is known to cost about 0.8 TFLOP (0.4 tera multiply-adds).
    assert 0.7e12 < plan.flops_per_forward < 0.9e12


def test_a_lora_counts_what_peft_adds() -> None:
    recipe = load_recipe("sd15-am", ["model.parameterization=lora", "model.lora.rank=16"])
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        unet.add_adapter(LoraConfig(r=16, target_modules=list(recipe.model.lora.targets)))
    added = sum(parameter.numel() for name, parameter in unet.named_parameters() if "lora_" in name)
    plan = make_plan(recipe, processes=1)
    assert plan.trained_parameters == added
    assert plan.denoiser_parameters == SD15_UNET
    assert sum(parameter.numel() for parameter in unet.parameters()) == SD15_UNET + added


@pytest.mark.parametrize(
    ("name", "denoiser", "pixels"),
    [
        ("sd35-medium-am", 2_243_171_520, 1024),
        ("sd35-medium-lora", 2_243_171_520, 512),
        ("flux-lora", 11_901_408_320, 512),
    ],
)
def test_flow_models_are_planned_with_their_published_sizes(name: str, denoiser: int, pixels: int) -> None:
    plan = make_plan(load_recipe(name), processes=1)
    assert plan.denoiser_parameters == denoiser
    assert plan.pixels == pixels**2
    assert "GB from the hub" in plan.download
    if name == "sd35-medium-lora":
        assert dict(plan.lines())["memory"].endswith("at least a GPU of 24 GB")
    with pytest.raises(UsageError, match=r"schedule\.beta_start = 0\.001 has no effect"):
        make_plan(load_recipe(name, ["schedule.beta_start=0.001", "schedule.beta_end=0.01"]), 1)


@pytest.mark.parametrize(
    ("pretrained", "denoiser"),
    [
        ("stabilityai/stable-diffusion-xl-base-1.0", 2_567_463_684),
        ("stabilityai/stable-diffusion-3-medium-diffusers", 2_028_328_000),
        ("stabilityai/stable-diffusion-3.5-large", 8_056_627_520),
        ("black-forest-labs/FLUX.1-schnell", 11_891_178_560),
    ],
)
def test_other_published_models_are_planned_too(pretrained: str, denoiser: int) -> None:
    """CLIP's two encoders and the autoencoders have their published sizes as well: 123, 695 and 84 million."""
    recipe = "flux-lora" if "FLUX" in pretrained else "sd15-lora"
    plan = make_plan(load_recipe(recipe, [f"model.pretrained={pretrained}"]), processes=1)
    assert plan.denoiser_parameters == denoiser
    if "xl" in pretrained:
        assert plan.text_parameters == 123_060_480 + 694_659_840
        assert plan.vae_parameters == 83_653_863


@pytest.mark.parametrize("name", ["sd15-am", "sd15-buffer-am", "sd15-lora", "sd15-single-prompt"])
def test_every_shipped_recipe_of_sd15_has_a_plan(name: str) -> None:
    text = dict(make_plan(load_recipe(name), processes=1).lines())
    assert {"identity", "model", "download", "trained", "memory", "batch", "cost", "time", "evaluation"} <= set(text)
    assert "imagereward (1.8 GB, downloaded on first use)" in text["scorers"]
    both = {"clip-score", "clip"} <= {*load_recipe(name).evaluation.metrics, *load_recipe(name).evaluation.diversity}
    assert both == ("clip (the same download as clip-score)" in text["scorers"]) == (name == "sd15-lora")
    assert "TFLOP in all" in text["cost"]
    assert "e+" not in text["cost"]
    assert "GiB for the reward gradient through the decoder at 512 x 512" in text["memory"]


def test_the_adjoint_decides_where_it_is_larger_than_the_decoder() -> None:
    """FLUX at 1024: the decoder takes 16 GiB, the activations of one guided trajectory more than twice that."""
    guided = ["guidance.guidance_scale=2", "guidance.guidance_in_adjoint_computation=true"]
    plan = make_plan(load_recipe("flux-lora", ["model.size=[1024, 1024]", *guided]), 1)
    assert plan.decoding_bytes == 16 * 2**30
    assert 2 * 16 * 2**30 < plan.back_bytes < 2 * 32 * 2**30
    assert dict(plan.lines())["memory"].endswith("at least a GPU of 96 GB")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("parameterization", ["full", "lora", "offset"])
def test_the_memory_of_a_plan_is_what_a_policy_holds(parameterization: str, precision: str, tmp_path: Path) -> None:
    """Weights and buffers of networks, copy for rollouts, decoder and text encoders; gradients and moments of AdamW."""
    pipelines.stable_diffusion_3(t5=False).save_pretrained(tmp_path)
    sets = [
        f"model.pretrained={tmp_path}",
        f"model.parameterization={parameterization}",
        f"model.precision={precision}",
    ]
    recipe = load_recipe("flow", sets)
    policy = build_policy(load_family(recipe.model), recipe.model)
    copied = policy._current_copy()
    modules = [*policy.networks, policy.pipeline.vae, *policy.family.text_encoders]
    modules += [] if copied is None else [copied.network]
    held = {
        value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
        for module in modules for value in (*module.parameters(), *module.buffers())
    }  # fmt: skip
    trained = sum(value.numel() for value in policy.trainable.values())
    # Weights of normalizations stay float32 where the plan counts the precision.
    assert make_plan(recipe, 1).memory_bytes == pytest.approx(sum(held.values()) + 12 * trained, rel=0.02)


def test_evaluation_is_counted_over_prompts_samples_and_settings() -> None:
    known = dict(make_plan(load_recipe("sd15-am", ["evaluation.prompts=100"]), 4).lines())
    # 100 prompts x 10 samples x 2 settings x 50 steps, guided; 803 GFLOP each at 100 TFLOP/s on 4 devices.
    assert (
        "2,000 images per checkpoint (2 settings), 200,000 network forwards, 6.7 min; once more" in known["evaluation"]
    )


def test_evaluation_images_are_counted() -> None:
    plan = make_plan(load_recipe("shapes", ["evaluation.prompts=5", "evaluation.samples_per_prompt=3"]), 1)
    settings = len(plan.recipe.evaluation_settings)
    assert plan.evaluation_images == 15 * settings
    assert plan.download.startswith("nothing")


def test_a_rehearsal_is_added_up_over_steps_collections_and_evaluations() -> None:
    """`shapes-buffer`: 64 steps, a collection for every eight of them, two checkpoints and the base model."""
    recipe = load_recipe("shapes-buffer")
    tried = Rehearsal(collection=2.0, update=0.5, picture=0.01, memory=2**30)
    plan = make_plan(recipe, 1, rehearsal=tried)
    assert tried.training(recipe) == 8 * 2.0 + 64 * 0.5
    assert tried.evaluation(recipe, 100) == pytest.approx(3 * 100 * 0.01)
    text = dict(plan.lines())
    assert text["time"].startswith("0.75 s per step, 48 s for 64 steps, ")
    assert text["memory"].startswith("1.00 GiB at most, measured on this machine")
    on_policy = load_recipe("shapes", ["evaluation.every=0"])
    assert tried.training(on_policy) == 40 * 2.5
    assert tried.evaluation(on_policy, 100) == 0


def test_a_dry_run_of_an_embedded_model_measures_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small = [
        "optimizer.prompts_per_step=2", "schedule.num_inference_steps=5", "evaluation.prompts=3",
        "evaluation.samples_per_prompt=2", "evaluation.batch_size=4",
    ]  # fmt: skip
    sets = [word for value in small for word in ("--set", value)]
    done = CliRunner().invoke(app, ["train", "shapes-buffer", "--dry-run", *sets, "--set", "method.buffer.size=2"])
    assert done.exit_code == 0, done.exception
    said = " ".join(done.stdout.split())
    assert "measured on this machine by a few steps and pictures" in said
    assert not list(tmp_path.iterdir())


def test_a_rehearsal_runs_nothing_of_the_users() -> None:
    own = load_recipe("shapes", ['reward=[{name="python:mine.py:reward"}]'])
    assert not can_try(own, 1)
    assert not can_try(load_recipe("shapes", ['reward=[{name="https://example.com/score"}]']), 1)
    assert not can_try(load_recipe("sd15-am"), 1)
    assert not can_try(load_recipe("shapes"), 2)
    assert can_try(load_recipe("shapes"), 1)
