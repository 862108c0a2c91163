"""`SOCDDIMScheduler` as diffusers uses it: configuration, saving, limits of the step, misuse."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler

import amsd
from amsd.diffusion.families.ddim_scheduler import SOCDDIMScheduler
from amsd.diffusion.loading import load_family
from amsd.errors import UsageError
from amsd.recipe import Model, Schedule
from tests import pipelines

SD15 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}


def through_folder(config: dict[str, Any], folder: Path) -> SOCDDIMScheduler:
    SOCDDIMScheduler(**config).save_pretrained(folder)
    return SOCDDIMScheduler.from_pretrained(folder)


WAYS: dict[str, Callable[[dict[str, Any], Path], SOCDDIMScheduler]] = {
    "constructor": lambda config, _: SOCDDIMScheduler(**config),
    "from_config of DDIM": lambda config, _: SOCDDIMScheduler.from_config(DDIMScheduler(**config).config),
    "from_config of its own": lambda config, _: SOCDDIMScheduler.from_config(SOCDDIMScheduler(**config).config),
    "from_pretrained": through_folder,
}


@pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize(
    "changes",
    [
        {"clip_sample": True, "clip_sample_range": 0.7},
        {"thresholding": True, "sample_max_value": 1.4},
        {"set_alpha_to_one": False},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
        {"rescale_betas_zero_snr": True, "prediction_type": "sample", "clip_sample": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_the_configuration_says_is_what_the_step_does(
    way: Callable[[dict[str, Any], Path], SOCDDIMScheduler], spacing: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    config = {**SD15, "timestep_spacing": spacing, **changes}
    theirs, ours = DDIMScheduler(**config), way(config, tmp_path)
    count = 10 if spacing != "linspace" else 112  # 999/111 = 9, but diffusers steps by 1000//112 = 8: only t is equal
    theirs.set_timesteps(count)
    ours.set_timesteps(count)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    if spacing == "linspace":
        theirs.num_inference_steps = 111  # 1000//111 = 9, the true distance
    random = torch.Generator().manual_seed(0)
    for t in theirs.timesteps:
        x, output, noise = torch.randn(3, 2, 4, 8, 8, generator=random)
        for use_clipped in (False, True):
            arguments = {"eta": 0.6, "use_clipped_model_output": use_clipped, "variance_noise": noise}
            expected = theirs.step(output, t, x, **arguments)
            got = ours.step(output, t, x, **arguments)
            scale = expected.prev_sample.abs().max()
            assert (got.prev_sample - expected.prev_sample).abs().max() < 1e-4 * scale
            assert torch.allclose(got.pred_original_sample, expected.pred_original_sample, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("key", ["clip_sample", "thresholding"])
def test_training_refuses_a_step_that_is_not_affine(key: str) -> None:
    scheduler = SOCDDIMScheduler(**{**SD15, key: True})
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match=f"{key}=True has no affine step"):
        scheduler.affine(1.0)


def test_a_grid_without_signal_is_refused_where_a_control_or_a_noise_prediction_needs_it() -> None:
    model = DDIMScheduler(**SD15, rescale_betas_zero_snr=True)
    with pytest.raises(UsageError, match="rescale_betas_zero_snr"):
        SOCDDIMScheduler.for_recipe(model, Schedule())
    scheduler = SOCDDIMScheduler.from_config(model.config, timestep_spacing="trailing")
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match="alpha_bar is 0"):
        scheduler.affine(1.0)
    x = torch.zeros(1, 4, 2, 2)
    with pytest.raises(ValueError, match="alpha_bar is 0 at timestep 999"):
        scheduler.step(x, 999, x)
    # Where the grid does not touch the empty end of the rescaled table, training uses that table.
    inside = SOCDDIMScheduler.for_recipe(model, Schedule(timestep_spacing="leading"))
    assert torch.equal(inside.alphas_cumprod, model.alphas_cumprod)
    assert torch.isfinite(inside.affine(1.0).control_scale[:-1]).all()


def test_final_step_survives_saving_conversion_and_assignment(tmp_path: Path) -> None:
    ours = SOCDDIMScheduler(**SD15, final_step="midpoint")
    ours.save_pretrained(tmp_path)
    assert SOCDDIMScheduler.from_pretrained(tmp_path).final_step == "midpoint"
    other = DPMSolverMultistepScheduler.from_config(ours.config)
    assert SOCDDIMScheduler.from_config(other.config).final_step == "midpoint"
    ours.set_timesteps(10)
    last = float(ours.alphas_cumprod[ours.timesteps[-1]])
    assert float(ours.affine(1.0).A[-1] ** 2) * last == pytest.approx((1 + last) / 2)
    ours.final_step = "noiseless"
    assert ours.config.final_step == "noiseless"
    assert float(ours.affine(1.0).A[-1] ** 2) * last == pytest.approx(1)
    ours.final_step = None  # diffusers' own rule
    assert float(ours.affine(1.0).A[-1] ** 2) * last == pytest.approx(1)
    with pytest.raises(ValueError, match="'noiseless', 'midpoint' or None, but got 'middle'"):
        SOCDDIMScheduler(final_step="middle")  # type: ignore[arg-type]


def test_final_step_takes_the_place_of_set_alpha_to_one_and_the_configuration_says_so() -> None:
    ours = SOCDDIMScheduler(**SD15, set_alpha_to_one=False, final_step="noiseless")
    ours.set_timesteps(10)
    assert ours.config.set_alpha_to_one is True
    assert float(ours.affine(0.0).A[-1] ** 2 * ours.affine(0.0).alpha_bar[-1]) == pytest.approx(1)


def test_a_changed_grid_table_or_prediction_is_noticed() -> None:
    x, output = torch.randn(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    ours = SOCDDIMScheduler(**SD15)

    def fresh(**changes: Any) -> torch.Tensor:
        scheduler = SOCDDIMScheduler(**{**SD15, **changes})
        scheduler.set_timesteps(10)
        result: torch.Tensor = scheduler.step(output, scheduler.timesteps[-1], x).prev_sample
        return result

    ours.set_timesteps(10)
    assert torch.equal(ours.step(output, 0, x).prev_sample, fresh())
    ours.register_to_config(timestep_spacing="trailing")
    ours.set_timesteps(10)
    assert torch.equal(ours.step(output, 99, x).prev_sample, fresh(timestep_spacing="trailing"))
    ours.register_to_config(prediction_type="v_prediction")
    expected = fresh(timestep_spacing="trailing", prediction_type="v_prediction")
    assert torch.equal(ours.step(output, 99, x).prev_sample, expected)
    ours.alphas_cumprod = SOCDDIMScheduler(**{**SD15, "beta_end": 0.02}).alphas_cumprod
    expected = fresh(timestep_spacing="trailing", prediction_type="v_prediction", beta_end=0.02)
    assert torch.equal(ours.step(output, 99, x).prev_sample, expected)
    ours.alphas_cumprod *= 0.9  # in place
    assert not torch.equal(ours.step(output, 99, x).prev_sample, expected)


def test_misuse_is_an_error() -> None:
    x, ours = torch.zeros(1, 4, 2, 2), SOCDDIMScheduler(**SD15)
    with pytest.raises(ValueError, match="call set_timesteps"):
        ours.step(x, 999, x)
    with pytest.raises(ValueError, match="call set_timesteps"):
        ours.affine(1.0)
    ours.set_timesteps(4)
    with pytest.raises(ValueError, match="generator and variance_noise"):
        ours.step(x, 0, x, eta=1.0, generator=torch.Generator(), variance_noise=x)
    with pytest.raises(ValueError, match=r"timestep 0\.5 is not on the grid"):
        ours.step(x, torch.tensor(0.5), x)
    with pytest.raises(ValueError, match="at least 1, but got 0"):
        ours.set_timesteps(0)
    outside = SOCDDIMScheduler(**SD15, steps_offset=1)
    with pytest.raises(ValueError, match="begin at timestep 1000, but the table ends at 999"):
        outside.set_timesteps(1000)
    short = SOCDDIMScheduler(trained_betas=[0.1, 0.3])
    with pytest.raises(ValueError, match="the table ends at 1"):
        short.set_timesteps(10)


def test_clamping_is_said_once_per_grid(caplog: pytest.LogCaptureFixture) -> None:
    ours = SOCDDIMScheduler.for_recipe(DDIMScheduler(**SD15), Schedule(num_inference_steps=10, final_step="midpoint"))
    x = torch.zeros(1, 4, 2, 2)
    with caplog.at_level(logging.WARNING, logger="amsd"):
        for t in ours.timesteps:
            ours.step(x, t, x, eta=2.0, generator=torch.Generator())
        ours.affine(2.0)
    assert [record.message for record in caplog.records if "too large" in record.message] == [
        "eta = 2 is too large for 10 of 10 steps (from index 0); clamped to sqrt(1 - alpha_bar')."
    ]


def test_a_saved_pipeline_that_names_it_loads_in_plain_diffusers_after_import_amsd(tmp_path: Path) -> None:
    pipeline = pipelines.stable_diffusion()
    schedule = Schedule(num_inference_steps=7, final_step="midpoint")
    pipeline.scheduler = SOCDDIMScheduler.for_recipe(pipeline.scheduler, schedule)
    pipeline.save_pretrained(tmp_path)
    assert amsd.SOCDDIMScheduler is SOCDDIMScheduler
    program = (
        "import amsd, sys; from diffusers import DiffusionPipeline; "
        "p = DiffusionPipeline.from_pretrained(sys.argv[1]); print(type(p.scheduler).__name__, p.scheduler.final_step)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["SOCDDIMScheduler", "midpoint"]
    assert isinstance(load_family(Model(pretrained=str(tmp_path))).pipeline.scheduler, SOCDDIMScheduler)
    again = DiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    images = [
        p("a cat", num_inference_steps=7, eta=1.0, generator=torch.Generator().manual_seed(0), output_type="pt").images
        for p in (pipeline, again)
    ]
    assert torch.equal(*images)


def test_folders_of_early_versions_load_in_diffusers_and_in_amsd(tmp_path: Path) -> None:
    pipeline = pipelines.stable_diffusion()
    pipeline.scheduler = SOCDDIMScheduler.for_recipe(pipeline.scheduler, Schedule(num_inference_steps=7))
    pipeline.save_pretrained(tmp_path)
    index = tmp_path / "model_index.json"
    index.write_text(index.read_text().replace('"amsd"', '"amsd.diffusion.scheduler"'))
    program = (
        "import amsd.diffusion.scheduler, sys; from diffusers import DiffusionPipeline; "
        "print(type(DiffusionPipeline.from_pretrained(sys.argv[1]).scheduler).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["SOCDDIMScheduler"]
    assert isinstance(load_family(Model(pretrained=str(tmp_path))).pipeline.scheduler, SOCDDIMScheduler)
