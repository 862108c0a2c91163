"""What an export samples with: plain DDIM whose steps are those of fine-tuning, at any number of steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from amsd.diffusion.families.ddim_export import departures, inference_scheduler
from amsd.diffusion.families.ddim_scheduler import SOCDDIMScheduler
from amsd.recipe import Schedule
from tests import pipelines


def schedule(count: int, **changes: Any) -> Schedule:
    return Schedule.model_validate({"num_inference_steps": count, **changes})


@pytest.mark.parametrize("count", [2, 3, 6, 7, 13, 30, 50, 60, 77, 300, 333, 600, 999, 1000])
@pytest.mark.parametrize("spacing", ["trailing", "linspace", "leading"])
def test_plain_ddim_steps_from_grid_point_to_grid_point(count: int, spacing: str, tmp_path: Path) -> None:
    model = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    wanted = schedule(count, timestep_spacing=spacing)
    ours = SOCDDIMScheduler.for_recipe(model, wanted)
    inference_scheduler(model, wanted).save_pretrained(tmp_path)
    plain = DDIMScheduler.from_pretrained(tmp_path)
    plain.set_timesteps(count)
    assert torch.equal(plain.timesteps, ours.timesteps)
    random = torch.Generator().manual_seed(0)
    for t in [*plain.timesteps[:: max(1, count // 100)].tolist(), int(plain.timesteps[-1])]:
        x, output, noise = torch.randn(3, 1, 4, 2, 2, generator=random)
        for eta in (0.0, 0.7, 1.0):
            theirs = plain.step(output, t, x, eta=eta, variance_noise=noise).prev_sample
            assert torch.allclose(ours.step(output, t, x, eta=eta, variance_noise=noise).prev_sample, theirs, atol=3e-4)


@pytest.mark.parametrize("count", [7, 30])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_pipeline_draws_the_pictures_of_fine_tuning(count: int, eta: float) -> None:
    pipeline = pipelines.stable_diffusion()
    model, wanted = pipeline.scheduler, schedule(count, beta_start=0.002, beta_end=0.009)
    drawn = []
    for scheduler in (SOCDDIMScheduler.for_recipe(model, wanted), inference_scheduler(model, wanted)):
        pipeline.scheduler = scheduler
        noise = torch.Generator().manual_seed(0)
        drawn.append(
            pipeline("a cat", num_inference_steps=count, eta=eta, generator=noise, output_type="latent").images
        )
    assert torch.allclose(*drawn, atol=1e-4)


def test_the_table_is_the_model_s_own_where_the_steps_divide_it() -> None:
    config = inference_scheduler(pipelines.ddim(), schedule(50)).config
    assert config.trained_betas is None
    assert config.beta_end == 0.012
    assert "final_step" not in config


@pytest.mark.parametrize("other", [EulerDiscreteScheduler, DPMSolverMultistepScheduler])
def test_another_scheduler_made_from_it_works(other: Any) -> None:
    pipeline = pipelines.stable_diffusion()
    pipeline.scheduler = other.from_config(inference_scheduler(pipeline.scheduler, schedule(7)).config)
    images = pipeline("a cat", num_inference_steps=10, output_type="latent").images
    assert torch.isfinite(images).all()


def test_what_an_export_samples_otherwise_is_said() -> None:
    assert list(departures(schedule(30))) == []
    assert "without noise" in next(departures(schedule(50, final_step="midpoint")))
    assert "eta up to 1" in next(departures(schedule(50, eta=1.2)))
