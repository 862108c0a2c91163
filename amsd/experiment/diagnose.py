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
from amsd.recipe import Recipe
from amsd.training.collect import reward_gradient
from amsd.training.experience import Sample
from amsd.training.problem import ControlProblem

DOCS = "docs/diagnostics.md"
MEMORY_LIMIT = 0.2
"""Correlation of terminal latents above which the bias of fine-tuning is no longer small (method.md section 1)."""
GROWTH_LIMIT = 30.0
"""Growth of the adjoint's norm from the last step to the first above which its target drowns in outliers."""
SPREAD_LIMIT = 20.0
"""Ratio of the largest to the median reward-gradient norm above which a few samples decide every step."""
RECONSTRUCTION_LIMIT = 1e-6


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
    chosen = [prompts[0], prompts[len(prompts) // 2]]
    samples = [
        Sample(p, (recipe.training.seed, "diagnose", i)) for i, p in enumerate(p for p in chosen for _ in range(pairs))
    ]
    conditioning = problem.encode([sample.prompt for sample in samples])
    first, second = (_rollout(problem, conditioning, samples, draw) for draw in (0, 1))
    return [
        memorylessness(first, second, problem.steps, len(chosen)),
        *_adjoint_growth(problem, conditioning, first, samples),
        _gradient_spread(problem, first, samples),
        _reconstruction(problem, conditioning, first),
    ]


def memorylessness(first: Trajectory, second: Trajectory, steps: AffineSteps, prompts: int) -> Finding:
    """Correlation of terminal latents between rollouts that share their initial noise and nothing else."""
    value = terminal_correlation(first.terminal, second.terminal, prompts)
    expected = unit_variance_correlation(steps)
    if value <= MEMORY_LIMIT:
        verdict = "The sampler forgets its initial noise: the fine-tuned distribution is the exact tilt."
    else:
        verdict = (
            f"The sampler remembers its initial noise, so about {value**2:.0%} of the tilt is missing along remembered "
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


def _rollout(problem: ControlProblem, conditioning: Conditioning, samples: Sequence[Sample], draw: int) -> Trajectory:
    shape = problem.adapter.latent_shape
    start = normal([(*s.key, "start") for s in samples], (1, *shape), problem.device, torch.float32)
    later = normal(
        [(*s.key, "later", draw) for s in samples], (len(problem.steps), *shape), problem.device, torch.float32
    )
    predict = problem.base(conditioning, problem.recipe.guidance.guidance_scale)
    return rollout(predict, problem.steps, torch.cat([start, later], 1))


def _adjoint_growth(
    problem: ControlProblem, conditioning: Conditioning, trajectory: Trajectory, samples: Sequence[Sample]
) -> list[Finding]:
    """Norm of the lean adjoint by step index, with a plain and with a guided base drift."""
    terminal = (
        -problem.recipe.method.reward_multiplier * reward_gradient(problem, trajectory.terminal, samples).gradient
    )
    scale = problem.recipe.guidance.guidance_scale
    modes = {"adjoint-growth": 1.0} | ({"guided-adjoint-growth": scale} if scale != 1 else {})
    findings = []
    for name, guidance in modes.items():
        base = problem.base(conditioning, guidance)
        everywhere = torch.zeros(len(samples), dtype=torch.long)
        A, B = problem.steps.A, problem.steps.B
        with problem.policy.only_base():
            adjoint = lean_adjoint(terminal, trajectory.states, A, B, _rows_of(base), everywhere)
        norms = adjoint.adjoints.flatten(2).norm(dim=2).mean(0)
        growth = float(norms.max() / norms[-1])
        used = (guidance != 1) == problem.recipe.guidance.guidance_in_adjoint_computation
        role = "This recipe uses this mode." if used else "This recipe does not use this mode."
        fine = "The adjoint keeps its size along the trajectory." if growth <= GROWTH_LIMIT else (
            "The adjoint blows up along the trajectory; full guidance is known for it."
        )  # fmt: skip
        findings.append(
            Finding(name, growth, GROWTH_LIMIT, f"{fine} {role}", {"guidance_scale": guidance, "norms": norms.tolist()})
        )
    return findings


def _rows_of(base: NoisePredictor) -> BasePrediction:
    return lambda x, k, rows: base.rows(rows)(x, k)


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
