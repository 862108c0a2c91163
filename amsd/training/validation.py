"""Quick validation between checkpoints: reward and distance to the base on a fixed batch of prompts and noise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from amsd.diffusion.guidance import Conditioning
from amsd.diffusion.noise import normal
from amsd.diffusion.rollout import Trajectory, rollout
from amsd.diffusion.steps import at
from amsd.matching import control, norm_ratio
from amsd.training import processes
from amsd.training.chunks import VALIDATION, ChunkSize, fixed_micro_batch, in_chunks
from amsd.training.problem import ControlProblem

SAMPLES = 16
"""Trajectories of the fixed batch, over all processes."""


@torch.no_grad()
def validation_values(problem: ControlProblem, prompts: Sequence[str]) -> dict[str, float]:
    """Mean reward (and each term) of the current policy on the first prompts, sampled as in training.

    The noise is the same at every call, so successive values differ by the policy alone. Where the sampler has noise,
    `validation/kl` is the KL divergence of the policy's path law from the base's, whatever the method.
    """
    found: dict[str, list[float]] = {}
    size, each = fixed_micro_batch(problem.recipe), 1
    if problem.groupwise:
        size = each = problem.recipe.method.samples_per_prompt
    whole = problem.groupwise or problem.policy.sharded

    def drawn(part: Sequence[tuple[int, str]]) -> dict[str, list[float]]:
        texts = [prompt for _, prompt in part]
        keys = [(problem.recipe.training.seed, "validation", index) for index, _ in part]
        shape = (len(problem.steps) + 1, *problem.family.latent_shape)
        noise = normal(keys, shape, problem.device, torch.float32)
        predict = problem.finetuned(problem.encode(texts), problem.recipe.guidance.guidance_scale)
        with problem.policy.held():
            trajectory = rollout(predict, problem.steps, noise)
        values = problem.reward(problem.family.decode(trajectory.terminal).clamp(0, 1), texts)
        distances = base_distance(problem, predict.conditioning, trajectory)
        table = {"reward": values.total, **values.terms, **distances}
        return {name: scores.tolist() for name, scores in table.items()}

    own = _own(prompts, each)
    for values in in_chunks(own, ChunkSize(size, size, VALIDATION, fixed=whole), drawn):
        for name, scores in values.items():
            found.setdefault(name, []).extend(scores)
    parts = processes.gather([found])
    everything = {name: [value for part in parts for value in part.get(name, ())] for part in parts for name in part}
    return {f"validation/{name}": math.fsum(values) / len(values) for name, values in everything.items()}


def _own(prompts: Sequence[str], each: int) -> list[tuple[int, str]]:
    """(index, prompt) of what this process draws: whole groups of `each` where the reward compares their samples."""
    groups = [range(start, start + each) for start in range(0, max(SAMPLES, each) // each * each, each)]
    own = [index for group in processes.shard(groups) for index in group]
    return [(index, prompts[index // each % len(prompts)]) for index in own]


@torch.no_grad()
def base_distance(problem: ControlProblem, conditioning: Conditioning, trajectory: Trajectory) -> dict[str, Tensor]:
    """How far the policy is from the base on its own trajectories, (B,) each; empty for a sampler without noise.

    `kl` is half the sum over steps of |u_k|^2, both predictions guided as the sampler is: its mean is the KL divergence
    of the path laws. `prediction_ratio` is the norm of the prediction against the base's, averaged over steps.
    """
    steps = problem.steps
    controlled = steps.controlled.tolist()
    if not controlled:
        return {}
    base = problem.base(conditioning, problem.recipe.guidance.guidance_scale)
    moved, ratios = [], []
    with problem.policy.only_base():
        for k in controlled:
            x, prediction = trajectory.states[:, k], trajectory.predictions[:, k]
            reference = base(x, k)
            moved.append(control(prediction, reference, at(steps.control_scale, k, x)).flatten(1).square().sum(1))
            ratios.append(norm_ratio(prediction, reference))
    return {"kl": 0.5 * torch.stack(moved).sum(0), "prediction_ratio": torch.stack(ratios).mean(0)}
