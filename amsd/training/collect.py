"""Experience of Adjoint Matching: rollout, reward gradient, lean adjoint (docs/method.md sections 1 to 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from amsd.diffusion.families.base import DECODED_PIXELS, image_size
from amsd.diffusion.finite import DIVERGED
from amsd.diffusion.guidance import Conditioning
from amsd.diffusion.noise import generator, normal
from amsd.diffusion.rollout import Trajectory, rollout
from amsd.errors import Diverged
from amsd.matching import LeanAdjoint, lean_adjoint, smooth
from amsd.training.clock import PhaseClock
from amsd.training.experience import Diagnostics, Experience, IndexPlan, Sample, plan_indices
from amsd.training.problem import ControlProblem, require_finite


def collect(
    problem: ControlProblem, samples: Sequence[Sample], passes: int, step: int, clock: PhaseClock
) -> Experience:
    """Experience of trajectories, all at once, under the current policy, enough for `passes` passes of loss steps."""
    recipe, steps = problem.recipe, problem.steps
    prompts = [sample.prompt for sample in samples]
    with clock.phase("rollout"):
        conditioning = problem.encode(prompts)
        predict = problem.finetuned(conditioning, recipe.guidance.guidance_scale)
        noise = _noise(problem, samples)
        trajectory = rollout(predict, steps, noise)
        require_finite(trajectory.terminal, "sample", step, "rollout", prompts, DIVERGED, Diverged)
    with clock.phase("reward gradient"):
        terminal = reward_gradient(problem, trajectory.terminal, samples)
        _require_finite_reward(terminal, step, prompts)
    with clock.phase("adjoint"):
        plans = [_plan(problem, sample, passes) for sample in samples]
        stored = steps.controlled[torch.stack([plan.stored for plan in plans])]
        dropped = torch.tensor([_dropped(problem, sample) for sample in samples])
        used = conditioning.dropped(dropped)
        shift = 1 if recipe.method.adjoint_at == "next" else 0
        lowest = stored.min(1).values + shift
        adjoint = _adjoint(problem, trajectory, -recipe.method.reward_multiplier * terminal.gradient, used, lowest)
        _require_finite_adjoint(adjoint, stored + shift, step, prompts)
        base = _base_predictions(problem, trajectory, adjoint, used, stored, lowest)
    pick = torch.arange(len(samples))[:, None]
    return Experience(
        prompts=tuple(prompts),
        indices=stored,
        columns=torch.stack([plan.columns for plan in plans]),
        states=trajectory.states[pick, stored],
        adjoints=adjoint.adjoints[pick, stored + shift],
        base_predictions=base,
        noises=trajectory.noises[pick, stored],
        sampler_predictions=trajectory.predictions[pick, stored],
        conditioning=conditioning,
        dropped=dropped,
        diagnostics=_diagnostics(trajectory, terminal, adjoint, lowest),
    )


@dataclass(frozen=True)
class TerminalReward:
    """Reward of terminal latents and its gradient."""

    rewards: Tensor
    """(B,), on the CPU."""
    terms: dict[str, Tensor]
    """Each term before weighting, (B,), on the CPU."""
    gradient: Tensor
    """d r / d x_N, shape of the latents."""
    clamped_share: Tensor
    """(B,), on the CPU."""


def reward_gradient(problem: ControlProblem, latents: Tensor, samples: Sequence[Sample]) -> TerminalReward:
    """Gradient of the reward through the decoder in float32, smoothed as the recipe says; latents (B, ...)."""
    smoothing = problem.recipe.method.smoothing
    draws = []
    for draw in range(smoothing.samples):
        perturbed = latents
        if smoothing.noise_std:
            keys = [(*sample.key, "smoothing", draw) for sample in samples]
            noise = normal(keys, latents.shape[1:], latents.device, latents.dtype)
            perturbed = latents + smoothing.noise_std * noise
        draws.append(_gradient_at(problem, perturbed, [sample.prompt for sample in samples]))
    return TerminalReward(
        rewards=torch.stack([draw.rewards for draw in draws]).mean(0),
        terms={name: torch.stack([draw.terms[name] for draw in draws]).mean(0) for name in draws[0].terms},
        gradient=smooth(torch.stack([draw.gradient for draw in draws]), smoothing.clip_quantile).gradient,
        clamped_share=torch.stack([draw.clamped_share for draw in draws]).mean(0),
    )


def _gradient_at(problem: ControlProblem, latents: Tensor, prompts: Sequence[str]) -> TerminalReward:
    parts = []
    rows = max(1, DECODED_PIXELS // math.prod(image_size(problem.family)))
    for start in range(0, len(latents), rows):
        x = latents[start : start + rows].detach().requires_grad_(True)
        with torch.enable_grad():
            images = problem.family.decode(x)
            values = problem.reward(images.clamp(0, 1), prompts[start : start + rows])
        (gradient,) = torch.autograd.grad(values.total.sum(), x)
        outside = ((images.detach() < 0) | (images.detach() > 1)).flatten(1).float().mean(1)
        terms = {name: value.detach().cpu() for name, value in values.terms.items()}
        parts.append(TerminalReward(values.total.detach().cpu(), terms, gradient, outside.cpu()))
    return TerminalReward(
        torch.cat([part.rewards for part in parts]),
        {name: torch.cat([part.terms[name] for part in parts]) for name in parts[0].terms},
        torch.cat([part.gradient for part in parts]),
        torch.cat([part.clamped_share for part in parts]),
    )


def _noise(problem: ControlProblem, samples: Sequence[Sample]) -> Tensor:
    shape = (len(problem.steps) + 1, *problem.family.latent_shape)
    return normal([(*sample.key, "noise") for sample in samples], shape, problem.device, torch.float32)


def _plan(problem: ControlProblem, sample: Sample, passes: int) -> IndexPlan:
    available = len(problem.steps.controlled)
    count = problem.recipe.method.timesteps_per_trajectory
    return plan_indices(available, count, passes, generator(*sample.key, "indices"))


def _dropped(problem: ControlProblem, sample: Sample) -> bool:
    draw = torch.rand((), generator=generator(*sample.key, "dropout"))
    return bool(draw < problem.recipe.prompts.dropout)


def _adjoint(
    problem: ControlProblem, trajectory: Trajectory, terminal: Tensor, used: Conditioning, lowest: Tensor
) -> LeanAdjoint:
    base = problem.base(used, problem.adjoint_guidance)
    A, B = problem.steps.A, problem.steps.B
    with problem.policy.only_base():
        return lean_adjoint(terminal, trajectory.states, A, B, lambda x, k, rows: base.rows(rows)(x, k), lowest)


def _base_predictions(
    problem: ControlProblem,
    trajectory: Trajectory,
    adjoint: LeanAdjoint,
    used: Conditioning,
    stored: Tensor,
    lowest: Tensor,
) -> Tensor:
    """eps_0 at the stored steps (B, M, ...): taken from the adjoint's own pass where both are guided alike."""
    pick = torch.arange(len(stored))[:, None]
    known = adjoint.base_predictions[pick, stored]
    reusable = problem.adjoint_guidance == problem.control_guidance
    missing = (stored < lowest[:, None]) if reusable else torch.ones_like(stored, dtype=torch.bool)
    base = problem.base(used, problem.control_guidance)
    rows, columns = torch.nonzero(missing, as_tuple=True)
    if not len(rows):  # an empty tensor splits into one empty chunk, which attention layers refuse
        return known
    for chunk, column in zip(rows.split(len(stored)), columns.split(len(stored)), strict=True):
        k = stored[chunk, column]
        with torch.no_grad():
            known[chunk, column] = base.rows(chunk.to(problem.device))(trajectory.states[chunk, k], k)
    return known


def _require_finite_reward(terminal: TerminalReward, step: int, prompts: Sequence[str]) -> None:
    named = {f"reward {name!r}": scores for name, scores in terminal.terms.items()}
    named["weighted reward"] = terminal.rewards
    named[f"gradient of the reward {' + '.join(map(repr, terminal.terms))}"] = terminal.gradient
    hint = "Either the reward fails on these images, or the model has diverged: then lower optimizer.learning_rate."
    for what, value in named.items():
        require_finite(value, what, step, "reward gradient", prompts, hint)


def _require_finite_adjoint(adjoint: LeanAdjoint, needed: Tensor, step: int, prompts: Sequence[str]) -> None:
    pick = torch.arange(len(needed))[:, None]
    require_finite(adjoint.adjoints[pick, needed], "lean adjoint", step, "adjoint", prompts)


def _diagnostics(trajectory: Trajectory, terminal: TerminalReward, adjoint: LeanAdjoint, lowest: Tensor) -> Diagnostics:
    norms = adjoint.adjoints.flatten(2).norm(dim=2).cpu()
    last = norms.shape[1] - 1
    middle = torch.maximum(torch.full_like(lowest, last // 2), lowest)
    rows = torch.arange(len(norms))
    return Diagnostics(
        rewards=terminal.rewards,
        terms=terminal.terms,
        reward_gradient_norm=terminal.gradient.flatten(1).norm(dim=1).cpu(),
        clamped_share=terminal.clamped_share,
        adjoint_norm={"first": norms[rows, lowest], "middle": norms[rows, middle], "last": norms[:, last]},
        initial_cosine=torch.cosine_similarity(
            trajectory.states[:, 0].flatten(1), trajectory.terminal.flatten(1), dim=1
        ).cpu(),
    )
