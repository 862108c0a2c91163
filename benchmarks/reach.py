"""How far can fine-tuning shift the reward? `python benchmarks/reach.py` on the embedded models, without training.

For a small lambda the tilted mean of a reward r is lambda Var(r) above the base's. The fixed point of Adjoint Matching
moves the mean of step k by lambda g_k(x_k) standard deviations, g_k = sigma_k E[dr/dx_{k+1} | x_k], and so shifts the
reward by lambda sum_k E|g_k|^2: the share of the variance that is linear in each step's noise. Two estimates of it:

* pathwise: E[a.a'] of the lean adjoints of two trajectories that part at step k (what training regresses on);
* without derivatives: E[r z_k | x_k] = g_k (Gaussian integration by parts), from many continuations of one x_k.

Both below 1: the steps are too long, the tilt within one step is not a shift of its mean. Pathwise far below the other:
the reward depends on choices between separate outcomes, whose derivative lies in trajectories too rare to be drawn.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

import torch
import typer
from importance import prompts_with
from torch import Tensor

from amsd.diffusion.rollout import Trajectory, rollout
from amsd.experiment.setup import build_accelerator, build_problem, load_policy
from amsd.matching import lean_adjoint
from amsd.recipe import load_recipe
from amsd.training.problem import ControlProblem

BATCH = 64
"""Trajectories sampled at once, about."""


@dataclass(frozen=True)
class Reach:
    """Share of the reward's variance that is linear in the noise of single steps, with its standard error."""

    share: float
    standard_error: float


@dataclass(frozen=True)
class Pathwise:
    """What the lean adjoint sees."""

    reach: Reach
    second_moment: float
    """sum_k E|sigma_k a_{k+1}|^2 / Var(r): what training sees of each trajectory; the rest of it is noise."""
    largest_5_percent: float
    """Share of the trajectories with the largest products in the sum of all."""
    variance: float
    """Var(r) within a prompt."""


def pathwise(problem: ControlProblem, prompts: Sequence[str], trajectories: int, seed: int) -> Pathwise:
    """Reach by pairs of trajectories that share x_0 and the noises before step k, each pair for one k."""
    generator = torch.Generator().manual_seed(seed)
    controlled = problem.steps.controlled
    batch = len(controlled) * max(1, round(BATCH / len(controlled)))
    products, squares, rewards, named = [], [], [], []
    for start in range(0, trajectories, batch):
        k = controlled.repeat(batch // len(controlled))
        chosen = torch.arange(start, start + batch) // len(controlled) % len(prompts)
        texts = [prompts[index] for index in chosen.tolist()]
        first, other = _noise(problem, batch, generator), _noise(problem, batch, generator)
        # noise[:, 0] is x_0 and noise[:, j + 1] is z_j: up to z_{k-1} is shared
        shared = (torch.arange(first.shape[1])[None] <= k[:, None]).view(batch, -1, *[1] * (first.ndim - 2))
        reward, target = _targets(problem, texts, first, k)
        _, paired = _targets(problem, texts, torch.where(shared, first, other), k)
        products.append(len(controlled) * (target * paired).sum(1))
        squares.append(len(controlled) * target.square().sum(1))
        rewards.append(reward)
        named.append(chosen)
    variance = _variance(torch.cat(rewards), torch.cat(named))
    share, ordered = torch.cat(products) / variance, torch.cat(products).sort(descending=True).values
    return Pathwise(
        Reach(float(share.mean()), float(share.std()) / math.sqrt(len(share))),
        float(torch.cat(squares).mean() / variance),
        float(ordered[: math.ceil(len(ordered) / 20)].sum() / ordered.sum()),
        float(variance),
    )


@torch.no_grad()
def derivative_free(
    problem: ControlProblem, prompts: Sequence[str], states: int, continuations: int, seed: int, variance: float
) -> Reach:
    """Reach from E|E[r z_k | x_k]|^2, by `states` states x_k at each step, each continued in antithetic pairs."""
    generator = torch.Generator().manual_seed(seed)
    texts = [prompts[index % len(prompts)] for index in range(states)]
    path = rollout(problem.base(problem.encode(texts), 1.0), problem.steps, _noise(problem, states, generator))
    total, error = 0.0, 0.0
    for k in problem.steps.controlled.tolist():
        found = torch.stack(
            [_square(problem, path, row, texts[row], k, continuations // 2, generator) for row in range(states)]
        )
        total += float(found.mean()) / variance
        error += float(found.var()) / states / variance**2
    return Reach(total, math.sqrt(error))


def _square(
    problem: ControlProblem, path: Trajectory, row: int, text: str, k: int, pairs: int, generator: torch.Generator
) -> Tensor:
    """Unbiased |E[r z_k | x_k]|^2 of one state: products of different pairs only."""
    texts, predict = [text] * (2 * pairs), problem.base(problem.encode([text] * (2 * pairs)), 1.0)
    noise = _noise(problem, 2 * pairs, generator)
    noise[pairs:, k + 1] = -noise[:pairs, k + 1]
    x = path.states[row : row + 1, k].expand(2 * pairs, *path.states.shape[2:]).contiguous()
    for j in range(k, len(problem.steps)):
        x = problem.steps.step(j, x, predict(x, j), noise[:, j + 1])
    rewards = _score(problem, x, texts).double()
    terms = ((rewards[:pairs] - rewards[pairs:]) / 2)[:, None] * noise[:pairs, k + 1].flatten(1).double()
    return (terms.sum(0).square().sum() - terms.square().sum()) / (pairs * (pairs - 1))


def _targets(problem: ControlProblem, texts: list[str], noise: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Rewards (B,) and sigma_k dr/dx_{k+1} (B, D) at each row's own step k (B,), float64."""
    steps, predict = problem.steps, problem.base(problem.encode(texts), 1.0)
    path = rollout(predict, steps, noise)
    terminal = path.terminal.clone().requires_grad_(True)
    rewards = _score(problem, terminal, texts)
    (gradient,) = torch.autograd.grad(rewards.sum(), terminal)
    with problem.policy.only_base():
        adjoints = lean_adjoint(
            gradient, path.states, steps.A, steps.B, lambda x, j, rows: predict.rows(rows)(x, j), k + 1
        ).adjoints
    own = adjoints[torch.arange(len(texts)), k + 1].flatten(1).double()
    return rewards.detach().double(), steps.sigma[k][:, None] * own


def _score(problem: ControlProblem, latents: Tensor, texts: list[str]) -> Tensor:
    return problem.reward(problem.family.decode(latents).clamp(0, 1), texts).total


def _noise(problem: ControlProblem, count: int, generator: torch.Generator) -> Tensor:
    return torch.randn((count, len(problem.steps) + 1, *problem.family.latent_shape), generator=generator)


def _variance(rewards: Tensor, groups: Tensor) -> Tensor:
    """Mean over groups of the variance within a group."""
    return torch.stack([rewards[groups == group].var() for group in groups.unique()]).mean()


def main(
    recipe: Annotated[str, typer.Option(help="Recipe of the model: shapes or flow.")] = "shapes",
    reward: Annotated[str, typer.Option(help="Name of the reward.")] = "shapes:right",
    word: Annotated[str, typer.Option(help="Word that the prompts contain; empty: any prompt.")] = "big",
    prompts: Annotated[int, typer.Option()] = 8,
    inference_steps: Annotated[int, typer.Option(help="Steps N of the sampler.")] = 10,
    trajectories: Annotated[int, typer.Option(help="Pairs of trajectories.")] = 1024,
    states: Annotated[int, typer.Option(help="States x_k per step, continued without derivatives; 0: none.")] = 0,
    continuations: Annotated[int, typer.Option(help="Continuations of each state.")] = 128,
    seed: Annotated[int, typer.Option()] = 0,
    changes: Annotated[list[str] | None, typer.Option("--set", help="key=value of the recipe.")] = None,
) -> None:
    """Print one JSON object."""
    assignments = [f"reward=[{{name = {json.dumps(reward)}}}]", f"schedule.num_inference_steps={inference_steps}"]
    made = load_recipe(recipe, [*assignments, *(changes or [])])
    chosen = prompts_with(word, prompts)
    accelerator = build_accelerator(made)
    problem = build_problem(made, accelerator, load_policy(made, accelerator.device), chosen)
    found = pathwise(problem, chosen, trajectories, seed)
    shown = {
        "recipe": recipe, "reward": reward, "prompts": chosen, "inference_steps": inference_steps,
        "pathwise": asdict(found),
    }  # fmt: skip
    if states:
        free = derivative_free(problem, chosen, states, continuations, seed, found.variance)
        shown["derivative_free"] = asdict(free)
    typer.echo(json.dumps(shown, indent=2))


if __name__ == "__main__":
    typer.run(main)
