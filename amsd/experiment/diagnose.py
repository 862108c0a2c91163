"""`amsd diagnose`: does the theory hold for this model, schedule and reward? Figures, thresholds, verdicts."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from amsd.diffusion.steps import AffineSteps
from amsd.errors import option
from amsd.experiment.probe import GuidanceScales, Probe, method_of, modes, probe
from amsd.experiment.setup import build_accelerator, build_problem, load_policy
from amsd.prompts import load_prompts
from amsd.prompts.cut import cut_prompts
from amsd.recipe import Recipe
from amsd.tracking.progress import Report, silent
from amsd.training.experience import Sample
from amsd.training.problem import ControlProblem
from amsd.training.remarks import MEMORY_LIMIT, unit_variance_correlation

_LOG = logging.getLogger(__name__)
DOCS = "docs/diagnostics.md"
GROWTH_LIMIT = 30.0
"""Growth of the adjoint's norm from the last step to the first above which its target drowns in outliers."""
SPREAD_LIMIT = 20.0
"""Ratio of the largest to the median reward-gradient norm above which a few samples decide every step."""
RECONSTRUCTION_LIMIT = 1e-6
WEAK, STRONG = 1.0, 300.0
"""Reward multiplier times the reward's standard deviation: below, nothing is seen; above, the reward is exploited.
Published settings are 10 to 100 (docs/faq.md)."""
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
    least: float | None = None
    """Below this it is a warning too; None: no figure is too small."""

    @property
    def passed(self) -> bool:
        """Whether the figure is finite and within its limits."""
        above = self.least is None or self.value >= self.least
        return math.isfinite(self.value) and above and self.value <= self.limit

    def to_json(self) -> dict[str, Any]:
        """Plain data, with the page of the docs that explains it."""
        return asdict(self) | {"passed": self.passed, "docs": f"{DOCS}#{self.name}"}


def diagnose(recipe: Recipe, pairs: int = 16, report: Report = silent) -> list[Finding]:
    """All findings for the unchanged model of a recipe; `pairs` rollouts of each of two prompts share their start."""
    report("loading the model and the rewards", 0, 0)
    accelerator = build_accelerator(recipe)
    prompts = load_prompts(recipe.prompts.train, "train", recipe.prompts.column).texts
    problem = build_problem(recipe, accelerator, load_policy(recipe, accelerator.device), prompts)
    used = [prompts[0], prompts[len(prompts) // 2]]
    for remark in cut_prompts(problem.family, recipe, {"training": used}):
        _LOG.warning("%s", remark)
    return findings(problem, used, pairs, report)


def findings(problem: ControlProblem, prompts: Sequence[str], pairs: int, report: Report = silent) -> list[Finding]:
    """All findings for a problem whose policy is unchanged."""
    seed, scale = problem.recipe.training.seed, problem.recipe.guidance.guidance_scale
    samples = [Sample(p, (seed, "diagnose", i)) for i, p in enumerate(p for p in prompts for _ in range(pairs))]
    three = modes(scale)
    used = next((m for m in three if (m.sampler, m.adjoint) == (scale, problem.adjoint_guidance)), None)
    own = used or three[0]
    found = probe(problem, samples, own, report)
    targets = _targets(problem, found.adjoint_norms[own.name])
    return [
        _memorylessness(found, problem.steps, len(prompts)),
        *(_growth(mode, found.adjoint_norms[mode.name], mode == used) for mode in three),
        _reward_spread(found.rewards, len(prompts), method_of(problem).reward_multiplier),
        _gradient_spread(found.gradient_norm),
        _target_spread(targets),
        _reconstruction(found),
        _control_to_target(found, targets),
    ]


def _memorylessness(found: Probe, steps: AffineSteps, prompts: int) -> Finding:
    """Correlation of terminal latents between rollouts that share their initial noise and nothing else."""
    value = terminal_correlation(found.first, found.second, prompts)
    expected = unit_variance_correlation(steps)
    if value <= MEMORY_LIMIT:
        verdict = "The sampler forgets its initial noise, as the theory requires."
    else:
        verdict = (
            f"The sampler remembers its initial noise, so about {value:.0%} of the tilt is missing in the directions "
            "that it remembers. Use eta = 1 or more, or more steps."
        )
    return Finding("memorylessness", value, MEMORY_LIMIT, verdict, {"theory_unit_variance": expected})


def terminal_correlation(first: Tensor, second: Tensor, prompts: int) -> float:
    """Correlation over all latent dimensions of two batches (B, ...), each prompt's mean removed."""
    centered = []
    for batch in (first, second):
        grouped = batch.cpu().double().flatten(1).unflatten(0, (prompts, -1))
        centered.append(grouped - grouped.mean(1, keepdim=True))
    a, b = centered
    return float((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt())


def _growth(mode: GuidanceScales, norms: Tensor, used: bool) -> Finding:
    """Norm of the lean adjoint by step index; `norms` (B, N + 1)."""
    by_step = norms.mean(0)
    growth = float(by_step.max() / by_step[-1])
    role = "This recipe uses this mode." if used else "This recipe does not use this mode."
    fine = "The adjoint keeps its size along the trajectory." if growth <= GROWTH_LIMIT else (
        "The adjoint grows too much along the trajectory, as is known for full guidance."
    )  # fmt: skip
    details = {"guidance_scale": mode.sampler, "guidance_in_adjoint": mode.adjoint, "norms": by_step.tolist()}
    return Finding(f"adjoint-growth-{mode.name}", growth, GROWTH_LIMIT, f"{fine} {role}", details)


def _targets(problem: ControlProblem, norms: Tensor) -> Tensor:
    """Squared norms of the control's targets sigma_k a_{k+1} by trajectory and controlled step, (B, M), float64."""
    k = problem.steps.controlled
    shift = 1 if method_of(problem).adjoint_at == "next" else 0
    return norms[:, k + shift].square() * problem.steps.sigma[k].square()


def _target_spread(targets: Tensor) -> Finding:
    """How unevenly the control's target is spread over trajectories: the reward's gradient, grown along the way."""
    norms = targets.sum(1).sqrt()
    ordered = norms.square().sort(descending=True).values
    top = max(1, len(norms) // 20)
    median, share = float(norms.median()), float(ordered[:top].sum() / ordered.sum())
    spread = float(norms.max()) / median if median > 0 else math.inf
    if spread <= SPREAD_LIMIT:
        verdict = (
            f"The targets of these {len(norms)} trajectories are of similar size. More {option('pairs')} may find "
            "large ones."
        )
    else:
        verdict = (
            "A few trajectories carry almost all of the target. For them a small change of the noise changes the "
            "picture. The quantile mask and gradient clipping keep training stable but drop a part of these targets. "
            "Expect a smaller change of the reward than lambda asks for."
        )
    details = {"median": median, "largest": float(norms.max()), "top_5_percent_share": share, "norms": norms.tolist()}
    return Finding("target-spread", spread, SPREAD_LIMIT, verdict, details)


def _control_to_target(found: Probe, targets: Tensor) -> Finding:
    """|u| / |sigma a| of the unchanged policy: what rounding alone puts into the control."""
    target = float(targets.sum())
    ratio = (float(found.control_norm.sum()) / target) ** 0.5 if target > 0 else math.inf
    fine = "The control's target is well above rounding errors." if ratio <= CONTROL_LIMIT else (
        "Rounding errors are not small against the target: train in fp32, or raise method.reward_multiplier."
    )  # fmt: skip
    return Finding("control-to-target", ratio, CONTROL_LIMIT, fine, {"target": target**0.5})


def _reward_spread(rewards: Tensor, prompts: int, multiplier: float) -> Finding:
    """The reward multiplier in units of the reward: times its standard deviation over samples of one prompt."""
    deviation = float(rewards.cpu().double().unflatten(0, (prompts, -1)).var(1).mean().sqrt())
    value = multiplier * deviation
    if deviation == 0:
        verdict = "The reward is the same for every sample of a prompt, so there is nothing to learn from it."
    elif value < WEAK:
        verdict = (
            f"The reward is weak: its spread over samples is {deviation:.2g}. Set method.reward_multiplier to about "
            f"{10 / deviation:.1g}, or normalize = true for the reward."
        )
    elif value > STRONG:
        verdict = (
            f"The reward is very strong: its spread over samples is {deviation:.2g}. Training will exploit it. "
            f"Lower method.reward_multiplier (to about {100 / deviation:.1g})."
        )
    else:
        verdict = f"Lambda fits the reward, whose spread over samples is {deviation:.2g}."
    return Finding("reward-spread", value, STRONG, verdict, {"standard_deviation": deviation}, WEAK)


def _gradient_spread(norms: Tensor) -> Finding:
    median = float(norms.median())
    spread = float(norms.max()) / median if median > 0 else math.inf
    fine = "The reward's gradients are of similar size." if spread <= SPREAD_LIMIT else (
        "A few samples dominate the gradient: use [method.smoothing] with clip_quantile, or the quantile mask."
    )  # fmt: skip
    details = {"median": median, "largest": float(norms.max()), "norms": norms.tolist()}
    return Finding("reward-gradient-spread", spread, SPREAD_LIMIT, fine, details)


def _reconstruction(found: Probe) -> Finding:
    """Largest difference between the unchanged policy and its base, relative to the prediction."""
    value = float(found.deviation.max() / found.magnitude.max())
    fine = "Before training the policy is the base model: its control is zero." if value <= RECONSTRUCTION_LIMIT else (
        "Before training the policy is not the base model: its control is not zero."
    )  # fmt: skip
    return Finding("base-reconstruction", value, RECONSTRUCTION_LIMIT, fine, {})
