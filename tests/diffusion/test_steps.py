"""The affine steps against diffusers' own scheduler, against closed forms and at their limits."""

import math

import pytest
import torch
from diffusers import DDIMScheduler

from amsd.diffusion.families.ddim_scheduler import SOCDDIMScheduler
from amsd.diffusion.steps import affine_steps
from amsd.errors import UsageError
from amsd.recipe import Schedule

SD15 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}


def scheduler(**changes: object) -> SOCDDIMScheduler:
    settings = {"num_inference_steps": 50, **changes}
    return SOCDDIMScheduler.for_recipe(DDIMScheduler(**SD15), Schedule.model_validate(settings))


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("count", [10, 50])
def test_each_step_equals_diffusers(eta: float, prediction: str, count: int) -> None:
    theirs = DDIMScheduler(**SD15, prediction_type=prediction, timestep_spacing="trailing", set_alpha_to_one=True)
    ours = SOCDDIMScheduler.for_recipe(theirs, Schedule(num_inference_steps=count))
    theirs.set_timesteps(count)
    steps = ours.affine(eta)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    random = torch.Generator().manual_seed(0)
    for k, t in enumerate(theirs.timesteps):
        x, output, noise = torch.randn(3, 2, 4, 8, 8, generator=random, dtype=torch.float64)
        expected = theirs.step(output, t, x, eta=eta, variance_noise=noise if eta else None)
        got = steps.step(k, x, steps.prediction(output, k, x), noise)
        scale = expected.prev_sample.abs().max()
        assert (got - expected.prev_sample).abs().max() < 2e-6 * scale  # diffusers' alpha table is float32
        again = ours.step(output, t, x, eta=eta, variance_noise=noise)
        assert torch.allclose(again.prev_sample, got, rtol=1e-12, atol=1e-12)
        assert torch.allclose(again.pred_original_sample, expected.pred_original_sample, rtol=1e-5, atol=1e-5)


def test_grid_is_exact_where_the_steps_do_not_divide_the_table() -> None:
    steps = scheduler(num_inference_steps=30).affine(1.0)
    expected = [round(1000 - k * 1000 / 30) - 1 for k in range(30)]
    assert steps.timesteps.tolist() == expected
    table = scheduler().alphas_cumprod.double()
    # each step ends exactly where the next begins
    after = steps.A**2 * steps.alpha_bar
    assert torch.allclose(after[:-1], table[torch.tensor(expected[1:])], rtol=1e-12)


def test_a_noiseless_last_step_has_no_control_and_a_midpoint_has() -> None:
    noiseless, midpoint = scheduler().affine(1.0), scheduler(final_step="midpoint").affine(1.0)
    assert noiseless.sigma[-1] == 0
    assert noiseless.controlled.tolist() == list(range(49))
    assert midpoint.controlled.tolist() == list(range(50))
    assert noiseless.A[-1].item() == pytest.approx(1 / math.sqrt(noiseless.alpha_bar[-1]))


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_terminal_variance_converges(eta: float) -> None:
    """For data N(0, 0.25) the prediction is known, so the chain's terminal variance is a product of numbers."""

    def terminal_error(count: int) -> float:
        steps = scheduler(num_inference_steps=count).affine(eta)
        total = 0.25 * steps.alpha_bar + 1 - steps.alpha_bar
        variance = torch.tensor(1.0, dtype=torch.float64)
        for A, B, sigma, alpha_bar, spread in zip(steps.A, steps.B, steps.sigma, steps.alpha_bar, total, strict=True):
            variance = (A + B * (1 - alpha_bar).sqrt() / spread) ** 2 * variance + sigma**2
        return abs(float(variance) - 0.25)

    # measured order 0.74 (eta 1) to 1.6: slower where the noise is added at the finest scale
    order = math.log2(terminal_error(100) / terminal_error(200))
    assert 0.7 < order < 2.3


def test_large_eta_is_clamped_not_flipped() -> None:
    assert scheduler(num_inference_steps=50).affine(1.0).clamped == ()
    assert scheduler(num_inference_steps=50, final_step="midpoint").affine(1.36).clamped == ()
    steps = scheduler(num_inference_steps=50, final_step="midpoint").affine(2.0)
    assert steps.clamped
    assert torch.isfinite(steps.B).all()
    after = steps.A**2 * steps.alpha_bar
    assert (steps.sigma**2 <= 1 - after + 1e-12).all()


@pytest.mark.parametrize("key", ["clip_sample", "thresholding", "rescale_betas_zero_snr"])
def test_steps_that_are_not_affine_are_refused(key: str) -> None:
    model = DDIMScheduler(**{**SD15, key: True})
    with pytest.raises(UsageError, match=key):
        SOCDDIMScheduler.for_recipe(model, Schedule())


def test_timesteps_stay_integers() -> None:
    steps = affine_steps(scheduler().alphas_cumprod, scheduler().timesteps, 1.0, 1.0)
    assert steps.timesteps.dtype == torch.long
    assert steps.timesteps[0] == 999


def test_a_timestep_off_the_grid_is_an_error() -> None:
    x = torch.zeros(1, 4, 2, 2)
    with pytest.raises(ValueError, match="500 is not on the grid"):
        scheduler().step(x, 500, x)
