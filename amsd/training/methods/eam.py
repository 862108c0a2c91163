"""EAM, after the abstract of arXiv 2605.11480: the adjoint in closed form, so that endpoints need no trajectory.

The paper's equations were not to be had; the target is derived in docs/method.md section 9. With a linear memoryless
reference the score of the tilted law is g(x_e) = -base(x_e)/s_e + lambda dr/dx at an endpoint x_e of noise level s_e,
and noising it again to level s_t (a = alpha_t/alpha_e, s^2 = s_t^2 - a^2 s_e^2) gives
target = s_t (s eps - a g)/(a^2 + s^2), whose mean given x_t is the tilted model's noise prediction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from amsd.diffusion.guidance import Conditioning
from amsd.diffusion.steps import AffineSteps, at
from amsd.recipe.methods.regression import EAM
from amsd.training.events import Notice
from amsd.training.experience import Sample
from amsd.training.methods.regression import PathPoints, RegressionTrainer
from amsd.training.rewards import require_finite_reward, reward_gradient


class EAMTrainer(RegressionTrainer):
    """Experience is endpoints at a noise level, their tilted score, and path points noisier than they are."""

    @property
    def available(self) -> int:
        """Steps before the endpoint's: levels below it get no training."""
        method = self.recipe.method
        assert isinstance(method, EAM)
        return endpoint_step(self.problem.steps, method.endpoint_level, method.timesteps_per_trajectory)

    @property
    def sampled(self) -> int:
        """Steps to the endpoint; the rest of the trajectory is not needed."""
        return self.available

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
        x, used = trajectory.terminal, conditioning.dropped(dropped)
        with self.clock.phase("reward gradient"):
            found = reward_gradient(self.problem, x, samples)
            require_finite_reward(found, step, prompts)
        with self.clock.phase("adjoint"):
            untilted = self.base_score(used, x, end)
            score = untilted + self.method.reward_multiplier * found.gradient
            noises = self.noises(samples)
            columns = range(indices.shape[1])
            pairs = [renoised(self.problem.steps, end, indices[:, j], x, score, noises[:, j]) for j in columns]
            states, targets = (torch.stack([pair[i] for pair in pairs], 1) for i in (0, 1))
            null = [renoised(self.problem.steps, end, indices[:, j], x, untilted, noises[:, j])[1] for j in columns]
            base = self.predictions("base", used, states, indices)
        return PathPoints(
            prompts=tuple(prompts), conditioning=conditioning, rewards=found.rewards, terms=found.terms,
            indices=indices, states=states, base_predictions=base, targets=targets, dropped=dropped,
            clamped_share=found.clamped_share, groups=torch.zeros(len(samples), dtype=torch.long),
            noted={"null_drift": null_drift(torch.stack(null, 1), base)},
        )  # fmt: skip

    @torch.no_grad()
    def base_score(self, conditioning: Conditioning, x: Tensor, k: int) -> Tensor:
        """Score of the base model at states x (B, ...) of step k (Tweedie)."""
        steps = self.problem.steps
        prediction = self.problem.base(conditioning, self.problem.control_guidance)(x, k)
        return -steps.noise(prediction, k, x) / float(steps.s[k])


def null_drift(null: Tensor, base: Tensor) -> Tensor:
    """How far targets without a reward, lambda = 0, lie along the base's prediction from it, relative to it, (B,), CPU.

    Their mean is the base's prediction while the policy is the base, so the figure starts at 0 within its noise; away
    from 0 then, the base's scores at the endpoints' level and at the path points contradict each other, and training
    would move the model without any reward. Later it follows the tilt itself. Both arguments are (B, K, ...).
    """
    own = base.flatten(1)
    return (((null - base).flatten(1) * own).sum(1) / own.square().sum(1).clamp(min=1e-30)).cpu()


def endpoint_step(steps: AffineSteps, level: float, count: int) -> int:
    """The step whose noise level is next to `level`, with at least `count` steps before it."""
    return max(count, int((steps.s - level).abs().argmin()))


def renoised(steps: AffineSteps, end: int, k: Tensor, x: Tensor, score: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Path points x_k (B, ...) of endpoints x = x_end with tilted `score`, and their targets; k (B,) are noisier.

    Targets are in the path's own prediction: -s_k times the tilted score at x_k, or on a flow path the velocity that
    belongs to it, -(x_k + s_k score)/alpha_k, written so that it holds at alpha_k = 0 too.
    """
    ratio = steps.alpha[k] / steps.alpha[end]
    spread = (steps.s[k].square() - ratio.square() * steps.s[end].square()).clamp(min=0).sqrt()
    rows = torch.arange(len(k))
    a, q, s, alpha = (at(table, rows, x) for table in (ratio, spread, steps.s[k], steps.alpha[k]))
    point, total = a * x + q * noise, a.square() + q.square()
    if steps.prediction_type != "flow":
        return point, s * (q * noise - a * score) / total
    alpha_e, s_e = float(steps.alpha[end]), float(steps.s[end])
    of_noise = (alpha * (1 - s_e**2) / alpha_e**2 - s) * q * noise / total
    return point, -(x / alpha_e + s * score / (alpha_e * total) + of_noise)
