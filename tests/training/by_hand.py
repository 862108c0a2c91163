"""Trainers of tiny pipelines, built as their signatures say, for tests that call their parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from amsd.diffusion.families import family_for
from amsd.diffusion.parameterizations import build_policy
from amsd.recipe import from_dict
from amsd.rewards.combination import RewardValues
from amsd.run_directory import RunDirectory
from amsd.training.experience import Sample
from amsd.training.methods import trainer_of
from amsd.training.problem import ControlProblem

SAMPLES = [Sample(prompt, (0, "test", index)) for index, prompt in enumerate(["a", "a red circle", "b", ""])]


def left_over_right(images: Tensor, prompts: Any) -> RewardValues:
    """A curved function of where an image is bright, (B,)."""
    weight = torch.linspace(-1, 2, images.shape[-1])
    total = (images * weight).flatten(1).mean(1).sin() + images.square().flatten(1).mean(1)
    return RewardValues(total, {"curved": total})


def trainer(pipeline: Any, folder: Path, **sections: Any) -> Any:
    """The trainer of the recipe with these sections, after a perturbation of the policy: it is not the base."""
    recipe = from_dict(
        {
            "schedule": {"num_inference_steps": 4},
            "optimizer": {"prompts_per_step": len(SAMPLES), "micro_batch": len(SAMPLES)},
            "reward": [{"name": "brightness"}],
            **sections,
        }
    )
    family, accelerator = family_for(pipeline), Accelerator(cpu=True)
    policy = build_policy(family, recipe.model)
    if recipe.training.gradient_checkpointing:
        policy.checkpoint_gradients()
    problem = ControlProblem(recipe, family, policy, family.steps(recipe.schedule), left_over_right, accelerator.device)
    found = trainer_of(recipe.method)(problem, RunDirectory(folder / "run"), ["a"], accelerator)
    perturb(found, 0.02)
    return found


def perturb(trainer: Any, size: float) -> None:
    """Move every weight of the policy a little, always alike."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in trainer.problem.policy.trainable.values():
            value.add_(size * value.abs().mean() * torch.randn(value.shape, generator=random))


def gradient(trainer: Any, loss: Tensor) -> Tensor:
    """Of a scalar loss in the trained weights, flat."""
    weights = list(trainer.problem.policy.trainable.values())
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    return torch.cat(
        [torch.zeros_like(w).flatten() if g is None else g.flatten() for w, g in zip(weights, found, strict=True)]
    )
