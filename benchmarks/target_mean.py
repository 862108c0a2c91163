"""Is the mean of the lean adjoint what it must be? `python benchmarks/target_mean.py` on the embedded model's base.

Gaussian integration by parts gives the mean target of step k without a derivative of any network:
E[r(x_N) z_k] = sigma_k E[dr/dx_{k+1}], the right side being the lean adjoint's. Both are projected on one direction per
prompt, the masked mean adjoint of the other half of the trajectories, and summed over the steps with control. Where a
few trajectories carry the adjoint, its mean over a finite sample falls short, and masking or clipping makes that worse.
"""

from __future__ import annotations

import json
from typing import Annotated

import torch
import typer
from torch import Tensor

from amsd.diffusion.noise import normal
from amsd.diffusion.rollout import rollout
from amsd.experiment.setup import build_accelerator, build_problem, load_policy
from amsd.matching import lean_adjoint
from amsd.prompts import load_prompts
from amsd.recipe import load_recipe
from amsd.training.collect import reward_gradient
from amsd.training.experience import Sample
from amsd.training.problem import ControlProblem

PROMPTS, EACH, QUANTILE = 8, 8, 0.9


def draw(problem: ControlProblem, prompts: list[str], batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards (P, EACH), noises and targets sigma_k dr/dx_{k+1} (P, EACH, M, D) of base trajectories, float64."""
    samples = [Sample(p, (0, "target", batch, i, j)) for i, p in enumerate(prompts) for j in range(EACH)]
    steps, predict = problem.steps, problem.base(problem.encode([sample.prompt for sample in samples]), 1.0)
    shape = (len(steps) + 1, *problem.adapter.latent_shape)
    path = rollout(predict, steps, normal([s.key for s in samples], shape, problem.device, torch.float32))
    terminal = reward_gradient(problem, path.terminal, samples)
    with problem.policy.only_base():
        adjoints = lean_adjoint(
            terminal.gradient, path.states, steps.A, steps.B, lambda x, k, rows: predict.rows(rows)(x, k),
            torch.ones(len(samples), dtype=torch.long),
        ).adjoints  # fmt: skip
    k = steps.controlled
    targets = steps.sigma[k].view(1, -1, 1) * adjoints[:, k + 1].flatten(2).double().cpu()
    noises = path.noises[:, k].flatten(2).double().cpu()
    return tuple(value.unflatten(0, (len(prompts), EACH)) for value in (terminal.rewards.double(), noises, targets))  # type: ignore[return-value]


def estimates(rewards: Tensor, noises: Tensor, targets: Tensor) -> dict[str, tuple[float, float]]:
    """Each estimate of the mean target and its standard error, from (P, n), (P, n, M, D), (P, n, M, D)."""
    norms = targets.square().sum((2, 3)).sqrt()
    limit = torch.quantile(norms, QUANTILE, dim=1, keepdim=True)
    kept = targets * (norms < limit)[:, :, None, None]
    clipped = targets * (limit / norms).clamp(max=1)[:, :, None, None]
    noisy = (rewards - rewards.mean(1, keepdim=True))[:, :, None, None] * noises
    half = rewards.shape[1] // 2
    found = {}
    for name, values in {"no derivative": noisy, "adjoint": targets, "clipped": clipped, "masked": kept}.items():
        mean, variance = 0.0, 0.0
        for tested, other in ((slice(0, half), slice(half, None)), (slice(half, None), slice(0, half))):
            projected = (values[:, tested] * kept[:, other].mean(1, keepdim=True)).sum((2, 3))
            mean += float(projected.mean(1).sum())
            variance += float((projected.var(1) / projected.shape[1]).sum())
        found[name] = (mean, variance**0.5)
    return found


def main(
    reward: Annotated[str, typer.Option()] = "shapes:right",
    batches: Annotated[int, typer.Option(min=2, help="Batches of 64 trajectories.")] = 12,
) -> None:
    """Print one JSON object."""
    recipe = load_recipe("shapes", [f"reward=[{{name = {json.dumps(reward)}}}]"])
    accelerator = build_accelerator(recipe)
    every = list(load_prompts("embedded:shapes", "train").texts)
    problem = build_problem(recipe, accelerator, load_policy(recipe, accelerator.device), every)
    prompts = [every[index * len(every) // PROMPTS] for index in range(PROMPTS)]
    drawn = [draw(problem, prompts, batch) for batch in range(batches)]
    rewards, noises, targets = (torch.cat(parts, 1) for parts in zip(*drawn, strict=True))
    squares = targets.square().sum((2, 3)).flatten().sort(descending=True).values
    shown = {
        "reward": reward,
        "trajectories": len(squares),
        "squared_target": {"median": float(squares.median()), "largest": float(squares[0])},
        "top_5_percent_share": float(squares[: len(squares) // 20].sum() / squares.sum()),
        "estimates": estimates(rewards, noises, targets),
    }
    typer.echo(json.dumps(shown, indent=2))


if __name__ == "__main__":
    typer.run(main)
