"""`amsd diagnose`: does the theory hold for this model, schedule and reward? Figures, thresholds, verdicts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from amsd.diffusion.guidance import Conditioning, NoisePredictor
from amsd.diffusion.noise import normal
from amsd.diffusion.rollout import Trajectory, rollout
from amsd.diffusion.steps import AffineSteps
from amsd.experiment.setup import build_accelerator, build_problem, load_policy
from amsd.matching import lean_adjoint
from amsd.matching.adjoint import BasePrediction
from amsd.prompts import load_prompts
from amsd.recipe import Guidance, Recipe
from amsd.training.collect import reward_gradient
from amsd.training.experience import Sample
from amsd.training.problem import ControlProblem

DOCS = "docs/diagnostics.md"
MEMORY_LIMIT = 0.2
"""Correlation of terminal latents above which the bias of fine-tuning is no longer small (docs/method.md section 1)."""
GROWTH_LIMIT = 30.0
"""Growth of the adjoint's norm from the last step to the first above which its target drowns in outliers."""
SPREAD_LIMIT = 20.0
"""Ratio of the largest to the median reward-gradient norm above which a few samples decide every step."""
RECONSTRUCTION_LIMIT = 1e-6
CONTROL_LIMIT = 0.1
"""Control of an unchanged policy, against its target, above which rounding is part of what is learned."""


@dataclass(frozen=True)
class Finding:
    """One diagnosed figure."""

    name: str
    value: float
    limit: float
    """Above this the verdict is a warning."""
    verdict: str
    details: dict[str, Any]

    @property
    def passed(self) -> bool:
        """Whether the figure is finite and within its limit."""
        return math.isfinite(self.value) and self.value <= self.limit

    def to_json(self) -> dict[str, Any]:
        """Plain data, with the page of the docs that explains it."""
        return asdict(self) | {"passed": self.passed, "docs": f"{DOCS}#{self.name}"}


def diagnose(recipe: Recipe, pairs: int = 16) -> list[Finding]:
    """All findings for the unchanged model of a recipe; `pairs` rollouts of each of two prompts share their start."""
    accelerator = build_accelerator(recipe)
    prompts = load_prompts(recipe.prompts.train, "train").texts
    problem = build_problem(recipe, accelerator, load_policy(recipe, accelerator.device), prompts)
    return findings(problem, [prompts[0], prompts[len(prompts) // 2]], pairs)


def findings(problem: ControlProblem, prompts: Sequence[str], pairs: int) -> list[Finding]:
    """All findings for a problem whose policy is unchanged."""
    seed = problem.recipe.training.seed
    samples = [Sample(p, (seed, "diagnose", i)) for i, p in enumerate(p for p in prompts for _ in range(pairs))]
    conditioning = problem.encode([sample.prompt for sample in samples])
    scale = problem.recipe.guidance.guidance_scale
    first, second = (_rollout(problem, conditioning, samples, draw, scale) for draw in (0, 1))
    plain = first if scale == 1 else _rollout(problem, conditioning, samples, 0, 1.0)
    strong = Guidance().guidance_scale if scale == 1 else scale
    guided = first if scale != 1 else _rollout(problem, conditioning, samples, 0, strong)
    modes = (
        Mode("cfg-trajectories", guided, strong, 1.0),
        Mode("no-guidance", plain, 1.0, 1.0),
        Mode("full-cfg", guided, strong, strong),
    )
    adjoints = {mode.name: _adjoint(problem, conditioning, mode, samples) for mode in modes}
    used = next((m.name for m in modes if (m.sampler, m.adjoint) == (scale, problem.adjoint_guidance)), None)
    own = next(m for m in modes if m.name == (used or "cfg-trajectories"))
    return [
        memorylessness(first, second, problem.steps, len(prompts)),
        *(_growth(mode, adjoints[mode.name], mode.name == used) for mode in modes),
        _gradient_spread(problem, first, samples),
        _target_spread(problem, adjoints[own.name]),
        _reconstruction(problem, conditioning, first),
        _control_to_target(problem, conditioning, own, adjoints[own.name]),
    ]


@dataclass(frozen=True)
class Mode:
    """One of the three modes of guidance (docs/method.md section 2) on trajectories that were sampled for it."""

    name: str
    trajectory: Trajectory
    sampler: float
    """Guidance scale of the trajectory."""
    adjoint: float
    """Guidance scale of the base drift in the adjoint."""


def memorylessness(first: Trajectory, second: Trajectory, steps: AffineSteps, prompts: int) -> Finding:
    """Correlation of terminal latents between rollouts that share their initial noise and nothing else."""
    value = terminal_correlation(first.terminal, second.terminal, prompts)
    expected = unit_variance_correlation(steps)
    if value <= MEMORY_LIMIT:
        verdict = "The sampler forgets its initial noise, as the theory asks."
    else:
        verdict = (
            f"The sampler remembers its initial noise, so about {value:.0%} of the tilt is missing along remembered "
            "directions. Use eta = 1 or more, or more steps."
        )
    return Finding("memorylessness", value, MEMORY_LIMIT, verdict, {"theory_unit_variance": expected})


def terminal_correlation(first: Tensor, second: Tensor, prompts: int) -> float:
    """Correlation over all latent dimensions of two batches (B, ...), each prompt's mean removed."""
    centred = []
    for batch in (first, second):
        grouped = batch.double().flatten(1).unflatten(0, (prompts, -1))
        centred.append(grouped - grouped.mean(1, keepdim=True))
    a, b = centred
    return float((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt())


def unit_variance_correlation(steps: AffineSteps) -> float:
    """The same figure in closed form for data N(0, I), whose exact prediction is sqrt(1 - alpha_bar) x."""
    slope = steps.A + steps.B * (1 - steps.alpha_bar).sqrt()
    memory, variance = 1.0, 1.0
    for k in range(len(steps)):
        memory *= float(slope[k])
        variance = float(slope[k] ** 2) * variance + float(steps.sigma[k] ** 2)
    return memory**2 / variance


def _rollout(
    problem: ControlProblem, conditioning: Conditioning, samples: Sequence[Sample], draw: int, guidance_scale: float
) -> Trajectory:
    shape = problem.adapter.latent_shape
    start = normal([(*s.key, "start") for s in samples], (1, *shape), problem.device, torch.float32)
    later = normal(
        [(*s.key, "later", draw) for s in samples], (len(problem.steps), *shape), problem.device, torch.float32
    )
    return rollout(problem.base(conditioning, guidance_scale), problem.steps, torch.cat([start, later], 1))


def _adjoint(problem: ControlProblem, conditioning: Conditioning, mode: Mode, samples: Sequence[Sample]) -> Tensor:
    """The lean adjoint at every step of a mode, (B, N + 1, ...)."""
    gradient = reward_gradient(problem, mode.trajectory.terminal, samples).gradient
    base, steps = problem.base(conditioning, mode.adjoint), problem.steps
    everywhere = torch.zeros(len(samples), dtype=torch.long)
    with problem.policy.only_base():
        found = lean_adjoint(
            -problem.recipe.method.reward_multiplier * gradient, mode.trajectory.states, steps.A, steps.B,
            _rows_of(base), everywhere,
        )  # fmt: skip
    return found.adjoints


def _growth(mode: Mode, adjoints: Tensor, used: bool) -> Finding:
    """Norm of the lean adjoint by step index."""
    norms = adjoints.flatten(2).norm(dim=2).mean(0)
    growth = float(norms.max() / norms[-1])
    role = "This recipe uses this mode." if used else "This recipe does not use this mode."
    fine = "The adjoint keeps its size along the trajectory." if growth <= GROWTH_LIMIT else (
        "The adjoint blows up along the trajectory; full guidance is known for it."
    )  # fmt: skip
    details = {"guidance_scale": mode.sampler, "guidance_in_adjoint": mode.adjoint, "norms": norms.tolist()}
    return Finding(f"adjoint-growth-{mode.name}", growth, GROWTH_LIMIT, f"{fine} {role}", details)


def _rows_of(base: NoisePredictor) -> BasePrediction:
    return lambda x, k, rows: base.rows(rows)(x, k)


def _targets(problem: ControlProblem, adjoints: Tensor) -> Tensor:
    """Squared norms of the control's targets sigma_k a_{k+1} by trajectory and controlled step, (B, M), float64."""
    k = problem.steps.controlled
    shift = 1 if problem.recipe.method.adjoint_at == "next" else 0
    return adjoints[:, k + shift].double().flatten(2).square().sum(2).cpu() * problem.steps.sigma[k].square()


def _target_spread(problem: ControlProblem, adjoints: Tensor) -> Finding:
    """How unevenly the control's target is spread over trajectories: the reward's gradient, grown along the way."""
    norms = _targets(problem, adjoints).sum(1).sqrt()
    ordered = norms.square().sort(descending=True).values
    top = max(1, len(norms) // 20)
    median, share = float(norms.median()), float(ordered[:top].sum() / ordered.sum())
    spread = float(norms.max()) / median if median > 0 else math.inf
    if spread <= SPREAD_LIMIT:
        verdict = f"These {len(norms)} trajectories pull alike; rare ones that do not may need more --pairs to be seen."
    else:
        verdict = (
            "A few trajectories carry the target, those on the verge between two outcomes. The tilt needs them: the "
            "quantile mask and gradient clipping leave part of it out, and without these the loss is very noisy. "
            "Expect less than the full tilt at a small lambda."
        )
    details = {"median": median, "largest": float(norms.max()), "top_5_percent_share": share, "norms": norms.tolist()}
    return Finding("target-spread", spread, SPREAD_LIMIT, verdict, details)


@torch.no_grad()
def _control_to_target(problem: ControlProblem, conditioning: Conditioning, mode: Mode, adjoints: Tensor) -> Finding:
    """|u| / |sigma a| of the unchanged policy: what rounding alone puts into the control."""
    steps, controls = problem.steps, []
    scale = problem.control_guidance
    tuned, base = problem.finetuned(conditioning, scale), problem.base(conditioning, scale)
    for k in steps.controlled.tolist():
        x = mode.trajectory.states[:, k]
        controls.append(float(steps.control_scale[k]) * (tuned(x, k) - base(x, k)).double().flatten(1).norm(dim=1))
    target = float(_targets(problem, adjoints).sum())
    ratio = float(torch.stack(controls).square().sum() / target) ** 0.5 if target > 0 else math.inf
    fine = "The control's target stands above rounding." if ratio <= CONTROL_LIMIT else (
        "Rounding in the two predictions is not small against the target: train in fp32, or raise reward_multiplier."
    )  # fmt: skip
    return Finding("control-to-target", ratio, CONTROL_LIMIT, fine, {"target": target**0.5})


def _gradient_spread(problem: ControlProblem, trajectory: Trajectory, samples: Sequence[Sample]) -> Finding:
    norms = reward_gradient(problem, trajectory.terminal, samples).gradient.flatten(1).norm(dim=1).cpu()
    median = float(norms.median())
    spread = float(norms.max()) / median if median > 0 else math.inf
    fine = "Samples pull alike." if spread <= SPREAD_LIMIT else (
        "A few samples dominate the gradient: use [method.smoothing] with clip_quantile, or the quantile mask."
    )  # fmt: skip
    details = {"median": median, "largest": float(norms.max()), "norms": norms.tolist()}
    return Finding("reward-gradient-spread", spread, SPREAD_LIMIT, fine, details)


@torch.no_grad()
def _reconstruction(problem: ControlProblem, conditioning: Conditioning, trajectory: Trajectory) -> Finding:
    """Largest difference between the unchanged policy and its base, relative to the prediction."""
    k = len(problem.steps) // 2
    x = trajectory.states[:, k]
    tuned, base = problem.finetuned(conditioning, 1.0)(x, k), problem.base(conditioning, 1.0)(x, k)
    value = float((tuned - base).abs().max() / base.abs().max())
    fine = "The unchanged policy is its base: the control starts at zero." if value <= RECONSTRUCTION_LIMIT else (
        "The unchanged policy differs from its base: the control does not start at zero."
    )  # fmt: skip
    return Finding("base-reconstruction", value, RECONSTRUCTION_LIMIT, fine, {})
