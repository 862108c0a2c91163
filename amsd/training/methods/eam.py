"""EAM, after the abstract of arXiv 2605.11480: the adjoint in closed form, so that endpoints need no trajectory.

The paper's equations were not to be had; the target is derived in docs/method.md section 9. With a linear memoryless
reference the score of the tilted law is g(x_e) = -base(x_e)/s_e + lambda dr/dx at an endpoint x_e of noise level s_e,
and noising it again to level s_t (a = alpha_t/alpha_e, s^2 = s_t^2 - a^2 s_e^2) gives
target = s_t (s eps - a g)/(a^2 + s^2), whose mean given x_t is the tilted model's noise prediction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from amsd.diffusion.guidance import Conditioning
from amsd.diffusion.steps import AffineSteps, at
from amsd.errors import UsageError
from amsd.recipe.methods.regression import EAM
from amsd.training.events import Notice
from amsd.training.experience import Sample
from amsd.training.methods.regression import PathPoints, RegressionTrainer
from amsd.training.rewards import require_finite_reward, reward_gradient


class EAMTrainer(RegressionTrainer):
    """Experience is endpoints at a noise level, their tilted score, and path points noisier than they are."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.problem.steps.prediction_type == "flow":
            raise UsageError("method.name: 'eam' predicts noise, and this model a velocity; use 'ram' or 'am'.")

    @property
    def available(self) -> int:
        """Steps before the endpoint's: levels below it get no training."""
        method = self.recipe.method
        assert isinstance(method, EAM)
        return endpoint_step(self.problem.steps, method.endpoint_level, method.timesteps_per_trajectory)

    def remarks(self) -> Iterator[Notice]:
        """The endpoint's level, which is that of a step."""
        level = float(self.problem.steps.s[self.available])
        yield Notice("endpoint", f"Endpoints are taken at noise level {level:.3g}.", values={"level": level})

    def compute_experience(self, samples: Sequence[Sample], passes: int, step: int) -> PathPoints:
        """Endpoints, the gradient of their reward, one base prediction each, and targets at K path points."""
        prompts, end = [sample.prompt for sample in samples], self.available
        indices, dropped = self.indices(samples), self.dropped(samples)
        with self.clock.phase("rollout"), self.sampler.applied():
            conditioning, trajectory = self.draw(samples, step)
        x, used = trajectory.states[:, end], conditioning.dropped(dropped)
        with self.clock.phase("reward gradient"):
            found = reward_gradient(self.problem, x, samples)
            require_finite_reward(found, step, prompts)
        with self.clock.phase("adjoint"):
            score = self.base_score(used, x, end) + self.method.reward_multiplier * found.gradient
            noises = self.noises(samples)
            points = [renoised(self.problem.steps, end, indices[:, j], x, score, noises[:, j])
                      for j in range(indices.shape[1])]  # fmt: skip
            states = torch.stack([state for state, _ in points], 1)
            targets = torch.stack([target for _, target in points], 1)
            base = self.predictions("base", used, states, indices)
        return PathPoints(
            prompts=tuple(prompts), conditioning=conditioning, rewards=found.rewards, terms=found.terms,
            indices=indices, states=states, base_predictions=base, targets=targets, dropped=dropped,
            clamped_share=found.clamped_share, groups=torch.zeros(len(samples), dtype=torch.long),
        )  # fmt: skip

    @torch.no_grad()
    def base_score(self, conditioning: Conditioning, x: Tensor, k: int) -> Tensor:
        """Score of the base model at states x (B, ...) of step k (Tweedie)."""
        return -self.problem.base(conditioning, self.problem.control_guidance)(x, k) / float(self.problem.steps.s[k])


def endpoint_step(steps: AffineSteps, level: float, count: int) -> int:
    """The step whose noise level is next to `level`, with at least `count` steps before it."""
    return max(count, int((steps.s - level).abs().argmin()))


def renoised(steps: AffineSteps, end: int, k: Tensor, x: Tensor, score: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Path points x_k (B, ...) of endpoints x = x_end with tilted `score`, and their targets; k (B,) are noisier."""
    ratio = steps.alpha[k] / steps.alpha[end]
    spread = (steps.s[k].square() - ratio.square() * steps.s[end].square()).clamp(min=0).sqrt()
    rows = torch.arange(len(k))
    a, s, s_t = (at(table, rows, x) for table in (ratio, spread, steps.s[k]))
    return a * x + s * noise, s_t * (s * noise - a * score) / (a.square() + s.square())
