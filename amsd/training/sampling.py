"""Trajectories of the current policy, keyed by their samples: what the experience of every method begins with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from amsd.diffusion.finite import DIVERGED
from amsd.diffusion.guidance import Conditioning
from amsd.diffusion.noise import generator, normal
from amsd.diffusion.rollout import Trajectory, rollout
from amsd.errors import Diverged
from amsd.training.experience import Sample
from amsd.training.problem import ControlProblem, require_finite


def sampler_noise(problem: ControlProblem, samples: Sequence[Sample]) -> Tensor:
    """x_0 and the noise of each of N steps, standard normal, (B, N + 1, ...)."""
    shape = (len(problem.steps) + 1, *problem.family.latent_shape)
    return normal([(*sample.key, "noise") for sample in samples], shape, problem.device, torch.float32)


def sampled(
    problem: ControlProblem, samples: Sequence[Sample], step: int, count: int | None = None
) -> tuple[Conditioning, Trajectory]:
    """Encoded prompts, and trajectories of the first `count` steps (unset: of all), guided as the sampler is.

    Raises:
        Diverged: a latent is not finite.
    """
    prompts = [sample.prompt for sample in samples]
    conditioning = problem.encode(prompts)
    noise = sampler_noise(problem, samples)
    predict = problem.finetuned(conditioning, problem.recipe.guidance.guidance_scale)
    with problem.policy.held():
        trajectory = rollout(predict, problem.steps, noise if count is None else noise[:, : count + 1])
    require_sampled(trajectory.terminal, step, "rollout", prompts)
    return conditioning, trajectory


def dropped(problem: ControlProblem, samples: Sequence[Sample]) -> Tensor:
    """Samples under prompt dropout, BoolTensor (B,)."""
    draws = [torch.rand((), generator=generator(*sample.key, "dropout")) for sample in samples]
    return torch.stack(draws) < problem.recipe.prompts.dropout


def require_sampled(latents: Tensor, step: int, phase: str, prompts: Sequence[str]) -> None:
    """Stop the run if a row of latents (B, ...) is not finite.

    Raises:
        Diverged: with the step, the phase and the prompts.
    """
    require_finite(latents, "sample", step, phase, prompts, DIVERGED, Diverged)
