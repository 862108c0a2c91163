"""Images through the pipeline's own call: independent of the batch, on common noise, under the right sampler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, PNDMScheduler
from torch import Tensor

from amsd.diffusion.families import family_for
from amsd.diffusion.families.ddim_scheduler import SOCDDIMScheduler
from amsd.diffusion.loading import load_family
from amsd.diffusion.texts import ReadPrompts
from amsd.errors import UsageError
from amsd.evaluation.identity import identity
from amsd.evaluation.metrics import quantize
from amsd.evaluation.protocol import (
    Index,
    Sampler,
    batches,
    generate,
    noise_generator,
    sampler_for,
    sampling,
)
from amsd.recipe import EvaluationSetting, Model, Schedule
from tests.pipelines import ddim, stable_diffusion, stable_diffusion_xl

PROMPTS = ("a red circle", "two blue triangles")
SCHEDULE = Schedule(num_inference_steps=4)


def setting(eta: float = 1.0, scheduler: Any = "fine-tuning", scale: float = 3.0, steps: int = 4) -> EvaluationSetting:
    return EvaluationSetting(eta=eta, scheduler=scheduler, guidance_scale=scale, num_inference_steps=steps)


def pictures_of(pipeline: Any, chosen: EvaluationSetting, indices: Sequence[Index], size: int, seed: int = 0) -> Tensor:
    family = family_for(pipeline)
    sampler = sampler_for(chosen, family_for(pipeline), SCHEDULE)
    read = ReadPrompts(family, "")
    with sampling(pipeline, sampler):
        parts = [list(indices[start : start + size]) for start in range(0, len(indices), size)]
        return torch.cat([generate(family, sampler, read, part, seed, [PROMPTS[p] for p, _ in part]) for part in parts])


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return stable_diffusion()


def test_batches_cover_every_image_once_in_order() -> None:
    cut = batches(3, 2, 4)
    assert [len(batch) for batch in cut] == [4, 2]
    assert [index for batch in cut for index in batch] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]


def test_noise_depends_on_seed_prompt_and_sample_only() -> None:
    def draw(seed: int, prompt: int, sample: int) -> float:
        return float(torch.randn(1, generator=noise_generator(seed, (prompt, sample))))

    assert draw(0, 1, 2) == draw(0, 1, 2)
    assert len({draw(0, 0, 0), draw(1, 0, 0), draw(0, 1, 0), draw(0, 0, 1), draw(0, 1, 1), draw(0, 11, 0)}) == 6


@pytest.mark.parametrize("build", [stable_diffusion, stable_diffusion_xl])
@pytest.mark.parametrize(("eta", "scale"), [(0.0, 3.0), (1.0, 3.0), (1.0, 1.0)])
def test_images_are_those_of_a_plain_call(build: Callable[[], Any], eta: float, scale: float) -> None:
    """A user who calls the pipeline with prompts and these generators gets the same picture."""
    pipeline = build()
    indices = [(0, 0), (1, 0), (1, 1)]
    ours = pictures_of(pipeline, setting(eta, "default", scale), indices, size=3)
    plain = pipeline(
        [PROMPTS[prompt] for prompt, _ in indices], generator=[noise_generator(0, index) for index in indices],
        eta=eta, guidance_scale=scale, num_inference_steps=4, output_type="pt",
    ).images  # fmt: skip
    assert (ours.int() - quantize(plain).int()).abs().max() <= 1


@pytest.mark.parametrize("scheduler", ["fine-tuning", "default"])
def test_an_image_does_not_depend_on_its_batch(pipeline: Any, scheduler: str) -> None:
    indices = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    alone = pictures_of(pipeline, setting(scheduler=scheduler), indices, size=1)
    together = pictures_of(pipeline, setting(scheduler=scheduler), indices, size=5)
    reordered = pictures_of(pipeline, setting(scheduler=scheduler), indices[::-1], size=2).flip(0)
    # Matrix products of another batch size round differently: at most one gray level, hardly ever.
    for other in (together, reordered):
        assert (alone.int() - other.int()).abs().max() <= 1
        assert (alone != other).float().mean() < 0.01
    assert (alone[0].int() - alone[1].int()).abs().float().mean() > 5, "samples of a prompt must differ"


def test_two_models_start_from_the_same_noise() -> None:
    """With the networks silenced, models differ in nothing but their noise, and that is common."""
    one, other = stable_diffusion(0), stable_diffusion(1)
    other.vae = one.vae
    for silent in (one, other):
        torch.nn.init.zeros_(silent.unet.conv_out.weight)
        torch.nn.init.zeros_(silent.unet.conv_out.bias)
    indices = [(0, 0), (1, 3)]
    first = pictures_of(one, setting(), indices, size=2)
    assert torch.equal(first, pictures_of(other, setting(), indices, size=2))
    assert not torch.equal(first, pictures_of(other, setting(), indices, size=2, seed=1))


def test_half_precision_text_does_not_touch_the_noise(pipeline: Any) -> None:
    """The latents stay float32 under mixed precision: the picture is that of full precision within its rounding."""
    exact = pictures_of(pipeline, setting(), [(0, 0)], size=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = pictures_of(pipeline, setting(), [(0, 0)], size=1)
    assert (exact.int() - mixed.int()).abs().float().mean() < 3


def test_fine_tuning_sampler_follows_the_recipe(pipeline: Any) -> None:
    schedule = Schedule(num_inference_steps=4, beta_start=0.002, beta_end=0.009, final_step="midpoint")
    sampler = sampler_for(setting(), family_for(pipeline), schedule)
    assert isinstance(sampler.scheduler, SOCDDIMScheduler)
    described = sampler.description
    assert (described["beta_start"], described["beta_end"], described["final_step"]) == (0.002, 0.009, "midpoint")
    assert described["timestep_spacing"] == "trailing"
    assert sampler.fallback is None


def with_scheduler(scheduler: Any) -> Any:
    return stable_diffusion(scheduler=scheduler)


def test_default_sampler_is_the_models_own(pipeline: Any) -> None:
    sampler = sampler_for(setting(scheduler="default"), family_for(pipeline), SCHEDULE)
    assert type(sampler.scheduler) is DDIMScheduler
    assert dict(sampler.scheduler.config) == dict(pipeline.scheduler.config)
    euler = sampler_for(setting(0.0, "default"), family_for(with_scheduler(EulerDiscreteScheduler())), SCHEDULE)
    assert type(euler.scheduler) is EulerDiscreteScheduler


def test_a_scheduler_without_eta_gives_way_to_ddim_and_says_so() -> None:
    own = PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True)
    family = family_for(with_scheduler(own))
    assert type(sampler_for(setting(0.0, "default"), family, SCHEDULE).scheduler) is PNDMScheduler
    sampler = sampler_for(setting(1.0, "default"), family, SCHEDULE)
    assert type(sampler.scheduler) is DDIMScheduler
    assert torch.equal(sampler.scheduler.alphas_cumprod, own.alphas_cumprod)
    assert sampler.fallback is not None
    assert "PNDMScheduler has no eta" in sampler.fallback


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_a_scale_that_the_pipeline_would_ignore_is_refused(pipeline: Any, scale: float) -> None:
    with pytest.raises(UsageError, match=f"guidance_scale = {scale:g}"):
        sampler_for(setting(scale=scale), family_for(pipeline), SCHEDULE)


def test_scheduler_and_training_mode_come_back_even_after_an_error(pipeline: Any) -> None:
    own = pipeline.scheduler
    pipeline.unet.train()
    pipeline.unet.conv_in.eval()

    def fail_while_sampling() -> None:
        with sampling(pipeline, Sampler(setting(), ddim())):
            assert pipeline.scheduler is not own
            assert not any(module.training for module in pipeline.unet.modules())
            raise KeyError

    try:
        with pytest.raises(KeyError):
            fail_while_sampling()
        assert pipeline.scheduler is own
        assert pipeline.unet.training
        assert not pipeline.unet.conv_in.training
    finally:
        pipeline.unet.eval()


def test_a_model_saved_with_a_solver_that_has_an_infinite_number(tmp_path: Path) -> None:
    """diffusers writes `"lambda_min_clipped": -Infinity` into the folder of every DPM solver."""
    pipeline = stable_diffusion(scheduler=DPMSolverMultistepScheduler.from_config(ddim().config))
    pipeline.save_pretrained(tmp_path)
    assert "-Infinity" in (tmp_path / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8")
    family = load_family(Model(pretrained=str(tmp_path)))
    sampler = sampler_for(setting(0.0, "default"), family, SCHEDULE)
    assert isinstance(sampler.scheduler, DPMSolverMultistepScheduler)
    assert sampler.description["lambda_min_clipped"] == "-inf"
    assert identity(sampler.description)
