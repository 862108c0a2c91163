"""Quick validation between checkpoints: the reward on a fixed batch of held-out prompts and noise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from amsd.diffusion.noise import normal
from amsd.diffusion.rollout import rollout
from amsd.training import processes
from amsd.training.problem import ControlProblem

SAMPLES = 16
"""Trajectories of the fixed batch, over all processes."""


@torch.no_grad()
def validation_values(problem: ControlProblem, prompts: Sequence[str]) -> dict[str, float]:
    """Mean reward (and each term) of the current policy on the first prompts, sampled as in training.

    The noise is the same at every call, so successive values differ by the policy alone.
    """
    found: dict[str, list[float]] = {}
    for part in _batches(problem, prompts):
        texts = [prompt for _, prompt in part]
        keys = [(problem.recipe.training.seed, "validation", index) for index, _ in part]
        shape = (len(problem.steps) + 1, *problem.family.latent_shape)
        noise = normal(keys, shape, problem.device, torch.float32)
        predict = problem.finetuned(problem.encode(texts), problem.recipe.guidance.guidance_scale)
        with problem.policy.held():
            terminal = rollout(predict, problem.steps, noise).terminal
        values = problem.reward(problem.family.decode(terminal).clamp(0, 1), texts)
        for name, scores in {"reward": values.total, **values.terms}.items():
            found.setdefault(name, []).extend(scores.tolist())
    parts = processes.gather([found])
    everything = {name: [value for part in parts for value in part.get(name, ())] for part in parts for name in part}
    return {f"validation/{name}": math.fsum(values) / len(values) for name, values in everything.items()}


def _batches(problem: ControlProblem, prompts: Sequence[str]) -> list[list[tuple[int, str]]]:
    """This process's batches of (index, prompt): whole groups where the reward compares the samples of a group."""
    size, each = problem.recipe.optimizer.micro_batch, 1
    if problem.groupwise:
        each = problem.recipe.method.samples_per_prompt
        groups = [range(start, start + each) for start in range(0, max(SAMPLES, each) // each * each, each)]
        batches = [list(group) for group in processes.shard(groups)]
    else:
        own = processes.shard(range(SAMPLES))
        batches = [own[start : start + size] for start in range(0, len(own), size)]
    return [[(index, prompts[index // each % len(prompts)]) for index in batch] for batch in batches]
