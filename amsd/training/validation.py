"""Quick validation between checkpoints: the reward on a fixed batch of held-out prompts and noise."""

from __future__ import annotations

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
    chosen = processes.shard([(index, prompts[index % len(prompts)]) for index in range(SAMPLES)])
    size = problem.recipe.optimizer.micro_batch
    totals: list[float] = []
    terms: dict[str, list[float]] = {}
    for start in range(0, len(chosen), size):
        part = chosen[start : start + size]
        texts = [prompt for _, prompt in part]
        keys = [(problem.recipe.training.seed, "validation", index) for index, _ in part]
        shape = (len(problem.steps) + 1, *problem.family.latent_shape)
        noise = normal(keys, shape, problem.device, torch.float32)
        predict = problem.finetuned(problem.encode(texts), problem.recipe.guidance.guidance_scale)
        with problem.policy.held():
            terminal = rollout(predict, problem.steps, noise).terminal
        images = problem.family.decode(terminal).clamp(0, 1)
        values = problem.reward(images, texts)
        totals += values.total.tolist()
        for name, scores in values.terms.items():
            terms.setdefault(name, []).extend(scores.tolist())
    found = {"validation/reward": _mean(totals)}
    return found | {f"validation/{name}": _mean(scores) for name, scores in terms.items()}


def _mean(local: list[float]) -> float:
    everything = processes.gather(local)
    return sum(everything) / len(everything)
