"""What the unchanged model does, sample by sample, measured in chunks that fit into memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from amsd.diffusion.guidance import Conditioning, NetworkPredictor
from amsd.diffusion.noise import normal
from amsd.diffusion.rollout import Trajectory, rollout
from amsd.errors import UsageError
from amsd.matching import lean_adjoint
from amsd.recipe import AdjointMatching, Guidance
from amsd.recipe.guidance_modes import FULL, TRAJECTORIES, UNGUIDED, GuidanceMode
from amsd.rows import Rows
from amsd.tracking.progress import Report, silent
from amsd.training.chunks import chunk_size, in_chunks
from amsd.training.experience import Sample
from amsd.training.problem import ControlProblem
from amsd.training.rewards import reward_gradient


@dataclass(frozen=True)
class GuidanceScales:
    """A guidance mode at the scales that its trajectories and its adjoint are measured with."""

    mode: GuidanceMode
    sampler: float
    """Guidance scale of the trajectory."""
    adjoint: float
    """Guidance scale of the base drift in the adjoint."""

    @property
    def name(self) -> str:
        """Name of the mode in the names of findings."""
        return self.mode.slug


@dataclass(frozen=True)
class Probe(Rows):
    """Figures of B samples; every tensor on the CPU, the sample first."""

    first: Tensor
    """Terminal latents as the recipe samples them, (B, ...)."""
    second: Tensor
    """The same from the same initial states with other noise afterwards, (B, ...)."""
    rewards: Tensor
    """Rewards of `first`, (B,)."""
    gradient_norm: Tensor
    """|d r / d x_N| at `first`, (B,)."""
    adjoint_norms: dict[str, Tensor]
    """Mode to norms of the lean adjoint at every step, (B, N + 1), float64."""
    control_norm: Tensor
    """Sum over steps of |u|^2, (B,), float64: what rounding puts into the control of an unchanged policy."""
    deviation: Tensor
    """Largest difference between the policy and its base half way, (B,)."""
    magnitude: Tensor
    """Largest value of the base's prediction there, (B,)."""


def method_of(problem: ControlProblem) -> AdjointMatching:
    """The settings of Adjoint Matching that a diagnosis measures.

    Raises:
        UsageError: the recipe trains by a method without an adjoint.
    """
    method = problem.recipe.method
    if not isinstance(method, AdjointMatching):
        raise UsageError(
            f"method.name = {method.name!r}: amsd diagnose measures the assumptions of Adjoint Matching, which "
            f'{method.label} does not make. Set method.name = "am".'
        )
    return method


def modes(guidance_scale: float) -> tuple[GuidanceScales, GuidanceScales, GuidanceScales]:
    """The three modes; a recipe without guidance is shown at the default scale in the guided ones."""
    strong = Guidance().guidance_scale if guidance_scale == 1 else guidance_scale
    return (
        GuidanceScales(TRAJECTORIES, strong, 1.0),
        GuidanceScales(UNGUIDED, 1.0, 1.0),
        GuidanceScales(FULL, strong, strong),
    )


def probe(problem: ControlProblem, samples: Sequence[Sample], own: GuidanceScales, report: Report = silent) -> Probe:
    """Measure all modes; `own` is the one whose trajectories the control is evaluated on.

    Raises:
        RunError: a single sample does not fit into memory.
    """
    # Full guidance has two rows in the network per sample, whatever the recipe trains with.
    guided = problem.recipe.guidance.model_copy(update={"guidance_in_adjoint_computation": True})
    recipe = problem.recipe.model_copy(update={"guidance": guided})
    measured = 0

    def work(part: Sequence[Sample]) -> Probe:
        nonlocal measured
        found = _probe(problem, part, own).map(Tensor.cpu)
        measured += len(part)
        report("trajectories measured", measured, len(samples))
        return found

    report("trajectories measured", 0, len(samples))
    return Probe.cat(in_chunks(samples, chunk_size(recipe, problem.device.type != "cpu"), work))


def _probe(problem: ControlProblem, samples: Sequence[Sample], own: GuidanceScales) -> Probe:
    conditioning = problem.encode([sample.prompt for sample in samples])
    scale = problem.recipe.guidance.guidance_scale
    chosen = modes(scale)
    paths = {
        sampler: _rollout(problem, conditioning, samples, 0, sampler)
        for sampler in {scale, *(mode.sampler for mode in chosen)}
    }
    smoothing = method_of(problem).smoothing
    rewarded = {sampler: reward_gradient(problem, path.terminal, samples, smoothing) for sampler, path in paths.items()}
    gradients = {sampler: found.gradient for sampler, found in rewarded.items()}
    first = paths[scale]
    deviation, magnitude = _reconstruction(problem, conditioning, first)
    return Probe(
        first=first.terminal,
        second=_rollout(problem, conditioning, samples, 1, scale).terminal,
        rewards=rewarded[scale].rewards,
        gradient_norm=gradients[scale].flatten(1).norm(dim=1),
        adjoint_norms={
            mode.name: _adjoint_norms(
                problem, problem.base(conditioning, mode.adjoint), paths[mode.sampler], gradients[mode.sampler]
            )
            for mode in chosen
        },
        control_norm=_control_norm(problem, conditioning, paths[own.sampler]),
        deviation=deviation,
        magnitude=magnitude,
    )


def _rollout(
    problem: ControlProblem, conditioning: Conditioning, samples: Sequence[Sample], draw: int, guidance_scale: float
) -> Trajectory:
    shape = problem.family.latent_shape
    start = normal([(*s.key, "start") for s in samples], (1, *shape), problem.device, torch.float32)
    later = normal(
        [(*s.key, "later", draw) for s in samples], (len(problem.steps), *shape), problem.device, torch.float32
    )
    return rollout(problem.base(conditioning, guidance_scale), problem.steps, torch.cat([start, later], 1))


def _adjoint_norms(problem: ControlProblem, base: NetworkPredictor, path: Trajectory, gradient: Tensor) -> Tensor:
    steps = problem.steps
    with problem.policy.only_base():
        found = lean_adjoint(
            -method_of(problem).reward_multiplier * gradient, path.states, steps.A, steps.B,
            lambda x, k, rows: base.rows(rows)(x, k), torch.zeros(len(gradient), dtype=torch.long),
        )  # fmt: skip
    norms: Tensor = found.adjoints.cpu().double().flatten(2).norm(dim=2)
    return norms


@torch.no_grad()
def _control_norm(problem: ControlProblem, conditioning: Conditioning, path: Trajectory) -> Tensor:
    steps, scale = problem.steps, problem.control_guidance
    tuned, base = problem.finetuned(conditioning, scale), problem.base(conditioning, scale)
    total = torch.zeros(len(path.states), dtype=torch.float64)
    for k in steps.controlled.tolist():
        x = path.states[:, k]
        u = float(steps.control_scale[k]) * (tuned(x, k) - base(x, k)).cpu().double()
        total += u.flatten(1).square().sum(1)
    return total


@torch.no_grad()
def _reconstruction(problem: ControlProblem, conditioning: Conditioning, path: Trajectory) -> tuple[Tensor, Tensor]:
    """Largest difference between the policy and its base by sample, and largest prediction."""
    k = len(problem.steps) // 2
    x = path.states[:, k]
    tuned, base = problem.finetuned(conditioning, 1.0)(x, k), problem.base(conditioning, 1.0)(x, k)
    return (tuned - base).abs().flatten(1).amax(1), base.abs().flatten(1).amax(1)
