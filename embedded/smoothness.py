"""How smooth a model's sampler is, and how heavy-tailed the targets of Adjoint Matching are on it.

python -m embedded smoothness embedded:shapes embedded:shapes-flow --terminal 0.2 --terminal 0.6 --count 2048
"""

import math
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

BATCH = 256
"""Trajectories at once."""
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
    target_top_5_percent: float
    """Share of the trajectories with the largest 5% in the sum of that over all."""
    target_largest_over_median: float
    correlation: float
    """Of terminal latents between rollouts that share their initial noise: 0 is memoryless."""


def measure(family: Family, steps: AffineSteps, count: int = 64, seed: int = 0, word: str = "") -> Smoothness:
    """All figures over `count` trajectories, a multiple of 16, of the held-out captions or 16 with a word."""
    captions = _captions(word)
    parts = [
        _measured(family, steps, captions, range(start, min(start + BATCH, count)), seed)
        for start in range(0, count, BATCH)
    ]
    jumps, squares, first, other = (torch.cat(values) for values in zip(*parts, strict=True))
    ordered = squares.sort(descending=True).values
    return Smoothness(
        jump_median=float(jumps.median()), jump_p90=float(jumps.quantile(0.9)), jump_largest=float(jumps.max()),
        target_mean=float(squares.mean()), target_largest_share=float(squares.max() / squares.sum()),
        target_over_median=float(squares.mean() / squares.median()),
        target_top_5_percent=float(ordered[: math.ceil(count / 20)].sum() / squares.sum()),
        target_largest_over_median=float(squares.max() / squares.median()),
        correlation=_correlation(first, other, len(captions)),
    )  # fmt: skip


def _captions(word: str) -> list[str]:
    """The 16 held-out captions, or the first 16 of all captions that contain a word, held-out ones first."""
    held_out, trained = (prompts_path(name).read_text().splitlines() for name in ("evaluation", "train"))
    found = [text for text in [*held_out, *trained] if word in text.split()][:16] if word else held_out
    if not found:
        raise typer.BadParameter(f"no caption contains {word!r}")
    return found


def _measured(
    family: Family, steps: AffineSteps, captions: list[str], rows: range, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Jumps and squared targets, (B,) each, of some trajectories, and their terminal latents with two noises each."""
    prompts = [captions[row % len(captions)] for row in rows]
    with torch.no_grad():
        conditioning = Conditioning(family.encode(prompts), family.encode_empty(len(rows)))
    predict = NetworkPredictor(family.network(family.denoiser.requires_grad_(False)), steps, conditioning)
    noise = _noise(family, steps, rows, seed, "noise")
    first = rollout(predict, steps, noise)
    jumps = _jumps(family, predict, steps, noise, first, prompts, _noise(family, steps, rows, seed, "direction")[:, 0])
    squares = _targets(family, predict, steps, first, prompts)
    other = _noise(family, steps, rows, seed, "other")
    other[:, 0] = noise[:, 0]
    return jumps, squares, first.terminal, rollout(predict, steps, other).terminal


def _noise(family: Family, steps: AffineSteps, rows: range, seed: int, name: str) -> Tensor:
    keys = [(seed, "smoothness", name, row) for row in rows]
    return normal(keys, (len(steps) + 1, *family.latent_shape), torch.device("cpu"), torch.float32)


@torch.no_grad()
def _reward(family: Family, latents: Tensor, prompts: list[str]) -> Tensor:
    return RightReward()(family.decode(latents).clamp(0, 1), prompts)


def _jumps(
    family: Family, predict: NetworkPredictor, steps: AffineSteps, noise: Tensor, first: Trajectory,
    prompts: list[str], direction: Tensor,
) -> Tensor:  # fmt: skip
    """|r(z + change) - r(z)| / |change| along a direction (B, *latent_shape) in the noise of the third step, (B,)."""
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


def of_model(
    pretrained: str, steps: int, shift: float | None = None, terminal: float | None = None, count: int = 64,
    word: str = "",
) -> Smoothness:  # fmt: skip
    """Figures of a model by its name in a recipe; `shift` replaces that of a flow model's scheduler."""
    family = load_family(Model(pretrained=pretrained))
    if isinstance(family, FlowFamily):  # no zero vectors in place of a T5 encoder's text
        family = family_for(family.pipeline, Model(pretrained=pretrained, max_sequence_length=0))
    if shift is not None:
        scheduler = family.pipeline.scheduler
        family.pipeline.scheduler = type(scheduler).from_config({**scheduler.config, "shift": shift})
    return measure(family, family.steps(Schedule(num_inference_steps=steps, shift_terminal=terminal)), count, word=word)


def smoothness(
    models: Annotated[list[str], typer.Argument(help="Names as in a recipe, such as embedded:shapes-flow.")],
    steps: Annotated[int, typer.Option(help="Inference steps.")] = 10,
    shift: Annotated[float | None, typer.Option(help="Shift of a flow model; default its own.")] = None,
    terminal: Annotated[list[float] | None, typer.Option(help="Last noise levels of a flow model to try.")] = None,
    word: Annotated[str, typer.Option(help="Only captions that contain it: big, small, two, ...")] = "",
    count: Annotated[int, typer.Option(help="Trajectories; a multiple of 16.")] = 64,
) -> None:
    """Measure jumps of the reward, tails of the targets and the sampler's memory."""
    torch.set_num_threads(1)
    for name in models:
        for level in terminal if terminal and name.endswith("-flow") else [None]:
            found = asdict(of_model(name, steps, shift, level, count, word))
            figures = ", ".join(f"{key} {figure:.4g}" for key, figure in found.items())
            typer.echo(f"{name}, N = {steps}{'' if level is None else f', last level {level:g}'}: {figures}")
