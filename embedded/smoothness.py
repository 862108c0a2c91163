"""How smooth a model's sampler is, and how heavy-tailed the targets of Adjoint Matching are on it.

python -m embedded smoothness embedded:shapes embedded:shapes-flow
"""

from dataclasses import asdict, dataclass
from typing import Annotated

import torch
import typer
from torch import Tensor

from amsd.diffusion.families import family_for
from amsd.diffusion.families.base import Family
from amsd.diffusion.families.flow import FlowFamily
from amsd.diffusion.guidance import Conditioning, NetworkPredictor
from amsd.diffusion.loading import load_family
from amsd.diffusion.noise import normal
from amsd.diffusion.rollout import Trajectory, rollout
from amsd.diffusion.steps import AffineSteps
from amsd.matching import lean_adjoint
from amsd.recipe import Model, Schedule
from amsd.shapes import prompts_path
from amsd.shapes.rewards import RightReward

CHANGE = 1e-3
"""Size of the change of one step's noise, in units of its norm: a difference quotient."""


@dataclass(frozen=True)
class Smoothness:
    """Figures of one model, at eta = 1 without guidance, reward `shapes:right`."""

    jump_median: float
    """|change of the reward| per unit of change in the noise of one step (the third)."""
    jump_p90: float
    jump_largest: float
    target_mean: float
    """Mean over trajectories of the sum over steps of |sigma a|^2, for lambda = 1."""
    target_largest_share: float
    """Largest trajectory's share of the sum of that over all: 1/B for equal ones."""
    target_over_median: float
    """Mean over median: 1 for equal ones, large for heavy tails."""
    correlation: float
    """Of terminal latents between rollouts that share their initial noise: 0 is memoryless."""


def measure(family: Family, steps: AffineSteps, count: int = 64, seed: int = 0) -> Smoothness:
    """All figures over `count` trajectories of the held-out captions."""
    captions = prompts_path("evaluation").read_text().splitlines()
    prompts = [captions[index % len(captions)] for index in range(count)]
    with torch.no_grad():
        conditioning = Conditioning(family.encode(prompts), family.encode_empty(count))
    predict = NetworkPredictor(family.network(family.denoiser.requires_grad_(False)), steps, conditioning)
    noise = _noise(family, steps, count, seed, "noise")
    first = rollout(predict, steps, noise)
    jumps = _jumps(family, predict, steps, noise, first, prompts, seed)
    squares = _targets(family, predict, steps, first, prompts)
    other = _noise(family, steps, count, seed, "other")
    other[:, 0] = noise[:, 0]
    return Smoothness(
        jump_median=float(jumps.median()), jump_p90=float(jumps.quantile(0.9)), jump_largest=float(jumps.max()),
        target_mean=float(squares.mean()), target_largest_share=float(squares.max() / squares.sum()),
        target_over_median=float(squares.mean() / squares.median()),
        correlation=_correlation(first.terminal, rollout(predict, steps, other).terminal, len(captions)),
    )  # fmt: skip


def _noise(family: Family, steps: AffineSteps, count: int, seed: int, name: str) -> Tensor:
    keys = [(seed, "smoothness", name, row) for row in range(count)]
    return normal(keys, (len(steps) + 1, *family.latent_shape), torch.device("cpu"), torch.float32)


@torch.no_grad()
def _reward(family: Family, latents: Tensor, prompts: list[str]) -> Tensor:
    return RightReward()(family.decode(latents).clamp(0, 1), prompts)


def _jumps(
    family: Family, predict: NetworkPredictor, steps: AffineSteps, noise: Tensor, first: Trajectory,
    prompts: list[str], seed: int,
) -> Tensor:  # fmt: skip
    """|r(z + change) - r(z)| / |change| for a random direction in the noise of the third step, (B,)."""
    direction = _noise(family, steps, len(noise), seed, "direction")[:, 0]
    change = CHANGE * direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    moved = noise.clone()
    moved[:, 1 + 2] += change
    before = _reward(family, first.terminal, prompts)
    after = _reward(family, rollout(predict, steps, moved).terminal, prompts)
    return (after - before).abs() / CHANGE


def _targets(
    family: Family, predict: NetworkPredictor, steps: AffineSteps, trajectory: Trajectory, prompts: list[str]
) -> Tensor:
    """Sum over steps of |sigma_k a_{k+1}|^2 of each trajectory, for lambda = 1, (B,)."""
    x = trajectory.terminal.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(RightReward()(family.decode(x).clamp(0, 1), prompts).sum(), x)
    lowest = torch.ones(len(x), dtype=torch.long)
    adjoint = lean_adjoint(
        -gradient, trajectory.states, steps.A, steps.B, lambda x, k, rows: predict.rows(rows)(x, k), lowest
    )
    sizes = adjoint.adjoints[:, 1:].flatten(2).square().sum(2)
    return (sizes * steps.sigma.to(sizes).square()).sum(1)


def _correlation(one: Tensor, other: Tensor, prompts: int) -> float:
    """Pooled over latent dimensions, after the mean of each prompt is taken off; row i shows prompt i % prompts."""
    pair = [_centered(value, prompts) for value in (one, other)]
    return float((pair[0] * pair[1]).sum() / ((pair[0].square().sum() + pair[1].square().sum()) / 2))


def _centered(latents: Tensor, prompts: int) -> Tensor:
    grouped = latents.view(-1, prompts, *latents.shape[1:])
    return (grouped - grouped.mean(0)).flatten()


def of_model(pretrained: str, steps: int, shift: float | None = None, count: int = 64) -> Smoothness:
    """Figures of a model by its name in a recipe; `shift` replaces that of a flow model's scheduler."""
    family = load_family(Model(pretrained=pretrained))
    if isinstance(family, FlowFamily):  # no zero vectors in place of a T5 encoder's text
        family = family_for(family.pipeline, Model(pretrained=pretrained, max_sequence_length=0))
    if shift is not None:
        scheduler = family.pipeline.scheduler
        family.pipeline.scheduler = type(scheduler).from_config({**scheduler.config, "shift": shift})
    return measure(family, family.steps(Schedule(num_inference_steps=steps)), count)


def smoothness(
    models: Annotated[list[str], typer.Argument(help="Names as in a recipe, such as embedded:shapes-flow.")],
    steps: Annotated[list[int] | None, typer.Option(help="Inference steps; default 10.")] = None,
    shift: Annotated[list[float] | None, typer.Option(help="Shifts to try; default the model's own.")] = None,
    count: Annotated[int, typer.Option(help="Trajectories; a multiple of 16.")] = 64,
) -> None:
    """Measure jumps of the reward, tails of the targets and the sampler's memory."""
    torch.set_num_threads(1)
    for name in models:
        for number in steps or [10]:
            for value in shift or [None]:
                found = asdict(of_model(name, number, value, count))
                figures = ", ".join(f"{key} {figure:.4g}" for key, figure in found.items())
                typer.echo(f"{name}, N = {number}{'' if value is None else f', shift {value:g}'}: {figures}")
