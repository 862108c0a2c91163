"""Which steps have learned their control? `python benchmarks/by_step.py RUN` on the last checkpoint of a run.

At the fixed point u_k = -sigma_k E[a_{k+1} | x_k], so the work E[-u_k . sigma_k a_{k+1}] of each step equals E|u_k|^2.
A ratio above 1 says that the step still moves less than it should, a ratio below 1 that its control holds noise.
Fresh trajectories of the fine-tuned model, as its recipe samples them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from amsd.diffusion.guidance import NetworkPredictor
from amsd.diffusion.rollout import rollout
from amsd.experiment.setup import build_accelerator, build_problem, load_policy
from amsd.matching import LeanAdjoint, control, lean_adjoint, matching_loss
from amsd.prompts import load_prompts
from amsd.recipe import AdjointMatching, load_recipe
from amsd.run_directory import RunDirectory
from amsd.training.problem import ControlProblem

BATCH = 64
"""Trajectories at once."""


def by_step(
    problem: ControlProblem, multiplier: float, prompts: Sequence[str], count: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Work and squared control of each step with noise, (count, K) each, float64."""
    steps, generator = problem.steps, torch.Generator().manual_seed(seed)
    work, squares = [], []
    for start in range(0, count, BATCH):
        texts = [prompts[(start + row) % len(prompts)] for row in range(min(BATCH, count - start))]
        condition = problem.encode(texts)
        tuned, base = problem.finetuned(condition, problem.control_guidance), problem.base(condition, 1.0)
        noise = torch.randn((len(texts), len(steps) + 1, *problem.family.latent_shape), generator=generator)
        with torch.no_grad():
            path = rollout(problem.finetuned(condition, problem.recipe.guidance.guidance_scale), steps, noise)
        terminal = path.terminal.clone().requires_grad_(True)
        scores = problem.reward(problem.family.decode(terminal).clamp(0, 1), texts).total
        (gradient,) = torch.autograd.grad(scores.sum(), terminal)
        lean = _lean(problem, base, -multiplier * gradient, path.states)
        each = []
        for k in steps.controlled.tolist():
            with torch.no_grad():
                u = control(tuned(path.states[:, k], k), lean.base_predictions[:, k], float(steps.control_scale[k]))
            each.append(matching_loss(u, lean.adjoints[:, k + 1], steps.sigma[k]))
        work.append(torch.stack([one.work for one in each], 1).double())
        squares.append(torch.stack([one.control_norm for one in each], 1).double())
    return torch.cat(work), torch.cat(squares)


def _lean(problem: ControlProblem, base: NetworkPredictor, terminal: Tensor, states: Tensor) -> LeanAdjoint:
    """Lean adjoints of all steps."""

    def predict(x: Tensor, k: int, rows: Tensor) -> Tensor:
        return base.rows(rows)(x, k)

    with problem.policy.only_base():
        lowest = torch.zeros(len(states), dtype=torch.long)
        return lean_adjoint(terminal, states, problem.steps.A, problem.steps.B, predict, lowest)


def main(
    run: Annotated[Path, typer.Argument(help="Folder of a run of Adjoint Matching without guidance.")],
    trajectories: Annotated[int, typer.Option()] = 512,
    seed: Annotated[int, typer.Option()] = 77,
) -> None:
    """Print a table."""
    folder = RunDirectory(run)
    recipe = load_recipe(str(folder.recipe))
    if not isinstance(recipe.method, AdjointMatching) or recipe.guidance.guidance_scale != 1:
        raise typer.BadParameter(f"{run} is no run of Adjoint Matching without guidance")
    accelerator, prompts = build_accelerator(recipe), load_prompts(recipe.prompts.train, "train").texts
    policy = load_policy(recipe, accelerator.device, folder.checkpoint(max(folder.steps())))
    problem = build_problem(recipe, accelerator, policy, prompts)
    work, squares = by_step(problem, recipe.method.reward_multiplier, prompts, trajectories, seed)
    typer.echo("| step | c_k | work | squared control | ratio |\n|---|---|---|---|---|")
    for column, k in enumerate(problem.steps.controlled.tolist()):
        mean, square = float(work[:, column].mean()), float(squares[:, column].mean())
        error = float(work[:, column].std()) / math.sqrt(len(work)) / square
        scale = abs(float(problem.steps.control_scale[k]))
        typer.echo(f"| {k} | {scale:.3f} | {mean:.4f} | {square:.4f} | {mean / square:.2f} ± {error:.2f} |")


if __name__ == "__main__":
    typer.run(main)
