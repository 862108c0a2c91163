"""DRaFT and ReFL against plain automatic differentiation through diffusers' own schedulers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from amsd.diffusion.noise import normal
from amsd.errors import UsageError
from amsd.recipe import load_recipe
from amsd.recipe.rules import warnings
from tests import pipelines
from tests.training.by_hand import SAMPLES, gradient, left_over_right, trainer

GUIDED = {"guidance_scale": 3.0}
ROWS = torch.arange(len(SAMPLES))


class Sampler:
    """The fine-tuned network on diffusers' scheduler: guided noise, a step, and the predicted clean latent."""

    def __init__(self, trainer: Any, scheduler: Any, eta: float, scale: float) -> None:
        self.trainer, self.scheduler, self.eta, self.scale = trainer, scheduler, eta, scale
        self.conditioning = trainer.problem.encode([sample.prompt for sample in SAMPLES])
        scheduler.set_timesteps(4)

    def output(self, x: Tensor, k: int, rows: Tensor = ROWS) -> Tensor:
        times = self.scheduler.timesteps[k].expand(len(x))
        call = self.trainer.problem.policy.finetuned
        one = call(x, times, self.conditioning.prompt.rows(rows))
        if self.scale == 1:
            return one
        other = call(x, times, self.conditioning.negative.rows(rows))
        return other + self.scale * (one - other)

    def step(self, x: Tensor, k: int, noise: Tensor) -> Tensor:
        extra = {"eta": self.eta, "variance_noise": noise} if isinstance(self.scheduler, DDIMScheduler) else {}
        t = self.scheduler.timesteps[k]
        result: Tensor = self.scheduler.step(self.output(x, k), t, x, **extra).prev_sample
        return result

    def sample(self, noise: Tensor, gradients: int) -> Tensor:
        """x_N, the last steps with gradients."""
        x = noise[:, 0]
        for k in range(4):
            with torch.set_grad_enabled(k >= 4 - gradients):
                x = self.step(x, k, noise[:, k + 1])
        return x


def noise_of(trainer: Any) -> Tensor:
    shape = (5, *trainer.problem.family.latent_shape)
    return normal([(*sample.key, "noise") for sample in SAMPLES], shape, torch.device("cpu"), torch.float32)


def rewards(trainer: Any, latents: Tensor) -> Tensor:
    return left_over_right(trainer.problem.family.decode(latents).clamp(0, 1), ()).total


def ddim_sampler(trainer: Any, eta: float, scale: float) -> Sampler:
    config = trainer.problem.family.pipeline.scheduler.config
    scheduler = DDIMScheduler.from_config(config, timestep_spacing="trailing", set_alpha_to_one=True)
    return Sampler(trainer, scheduler, eta, scale)


@pytest.mark.parametrize(("eta", "steps", "checkpointing"), [(0.7, "all", True), (1.0, 2, False), (0.0, 1, False)])
def test_drafts_gradient_is_that_of_the_sampler(eta: float, steps: Any, checkpointing: bool, tmp_path: Path) -> None:
    built = trainer(
        pipelines.stable_diffusion(), tmp_path, schedule={"num_inference_steps": 4, "eta": eta}, guidance=GUIDED,
        method={"name": "draft", "backpropagated_steps": steps}, training={"gradient_checkpointing": checkpointing},
    )  # fmt: skip
    experience = built.compute_experience(SAMPLES, 1, 1)
    items = built.losses(experience, ROWS, 0)
    sampler = ddim_sampler(built, eta, 3.0)
    expected = rewards(built, sampler.sample(noise_of(built), 4 if steps == "all" else steps))
    torch.testing.assert_close(items.loss.detach(), -expected.detach())
    torch.testing.assert_close(items.logged["reward"], expected.detach())
    found, known = gradient(built, items.loss.sum()), gradient(built, -expected.sum())
    assert float(known.norm()) > 1e-3
    torch.testing.assert_close(found, known, rtol=1e-3, atol=1e-4 * float(known.abs().max()))


def test_drafts_gradient_on_a_flow_path(tmp_path: Path) -> None:
    """Without noise the affine step is Euler's."""
    built = trainer(
        pipelines.stable_diffusion_3(t5=False), tmp_path, schedule={"num_inference_steps": 4, "eta": 0.0},
        guidance={"guidance_scale": 1.0}, method={"name": "draft", "backpropagated_steps": "all"},
    )  # fmt: skip
    items = built.losses(built.compute_experience(SAMPLES, 1, 1), ROWS, 0)
    pipeline = built.problem.family.pipeline
    sampler = Sampler(built, type(pipeline.scheduler).from_config(pipeline.scheduler.config), 0.0, 1.0)
    expected = rewards(built, sampler.sample(noise_of(built), 4))
    known = gradient(built, -expected.sum())
    torch.testing.assert_close(items.loss.detach(), -expected.detach())
    torch.testing.assert_close(
        gradient(built, items.loss.sum()), known, rtol=1e-3, atol=1e-4 * float(known.abs().max())
    )


def test_drafts_gradient_is_the_slope_of_the_reward(tmp_path: Path) -> None:
    """Finite differences of the whole sampler in one weight of the output layer."""
    built = trainer(
        pipelines.stable_diffusion(), tmp_path, schedule={"num_inference_steps": 4, "eta": 1.0},
        guidance={"guidance_scale": 1.0}, method={"name": "draft", "backpropagated_steps": "all"},
    )  # fmt: skip
    items = built.losses(built.compute_experience(SAMPLES, 1, 1), ROWS, 0)
    weight = built.problem.policy.trainable["conv_out.bias"]
    (slope,) = torch.autograd.grad(items.loss.sum(), weight)
    place, h, values = int(slope.abs().argmax()), 1e-2, []
    for sign in (1, -1):
        with torch.no_grad():
            weight[place] += sign * h
            values.append(float(built.losses(built.compute_experience(SAMPLES, 1, 1), ROWS, 0).loss.sum()))
            weight[place] -= sign * h
    assert (values[0] - values[1]) / (2 * h) == pytest.approx(float(slope[place]), rel=0.01)


def test_refls_gradient_is_that_of_the_predicted_clean_image(tmp_path: Path) -> None:
    built = trainer(
        pipelines.stable_diffusion(), tmp_path, guidance=GUIDED, method={"name": "refl", "late_share": 0.75}
    )
    experience = built.compute_experience(SAMPLES, 1, 1)
    drawn = experience.indices
    assert set(drawn.tolist()) <= {1, 2, 3}
    assert len(set(drawn.tolist())) > 1
    items = built.losses(experience, ROWS, 0)
    sampler, noise = ddim_sampler(built, 1.0, 3.0), noise_of(built)
    with torch.no_grad():
        states = [noise[:, 0]]
        for k in range(3):
            states.append(sampler.step(states[-1], k, noise[:, k + 1]))
    parts = []
    for row, k in enumerate(drawn.tolist()):
        rows = torch.tensor([row])
        x = states[k][rows]
        output = sampler.output(x, k, rows)
        clean = sampler.scheduler.step(output, sampler.scheduler.timesteps[k], x).pred_original_sample
        parts.append(rewards(built, clean))
    expected = torch.cat(parts)
    torch.testing.assert_close(items.loss.detach(), -expected.detach())
    found, known = gradient(built, items.loss.sum()), gradient(built, -expected.sum())
    assert float(known.norm()) > 1e-3
    torch.testing.assert_close(found, known, rtol=1e-3, atol=1e-4 * float(known.abs().max()))


@pytest.mark.parametrize("method", ["draft", "refl"])
def test_roles_of_guidance_that_do_not_exist_are_refused_and_dropout_is_noted(method: str) -> None:
    settings = [f"method.name={method}", "guidance.guidance_scale=5.0"]
    for key in ("guidance_in_adjoint_computation", "guidance_in_control_computation"):
        with pytest.raises(UsageError, match=rf"guidance\.{key}.*differentiates the sampler itself"):
            load_recipe("shapes", [*settings, f"guidance.{key}=true"])
    found = warnings(load_recipe("shapes", [*settings, "prompts.dropout=0.2"]))
    assert "prompts.dropout" in {problem.key for problem in found}


def test_more_steps_than_there_are_is_refused() -> None:
    with pytest.raises(UsageError, match=r"method\.backpropagated_steps.*there are 10 steps"):
        load_recipe("shapes", ["method.name=draft", "method.backpropagated_steps=11"])
