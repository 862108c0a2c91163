"""EAM, after the abstract of arXiv 2605.11480: the adjoint in closed form, so that endpoints need no trajectory.

The paper's equations were not to be had; the target is derived in docs/method.md section 9. With a linear memoryless
reference the score of the tilted law is g(x_e) = -base(x_e)/s_e + lambda dr/dx at an endpoint x_e of noise level s_e,
and noising it again to level s_t (a = alpha_t/alpha_e, s^2 = s_t^2 - a^2 s_e^2) gives
target = s_t (s eps - a g)/(a^2 + s^2), whose mean given x_t is the tilted model's noise prediction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from amsd.diffusion.guidance import Conditioning, NetworkPredictor
from amsd.diffusion.rollout import Trajectory
from amsd.diffusion.steps import AffineSteps, at
from amsd.matching import vector_jacobian_product
from amsd.recipe import Recipe
from amsd.recipe.methods.regression import EAM
from amsd.training.events import Notice
from amsd.training.experience import Sample
from amsd.training.methods.regression import PathPoints, RegressionTrainer
from amsd.training.problem import remedy, require_finite
from amsd.training.rewards import require_finite_reward, reward_gradient
from amsd.training.sampling import dropped


class EAMTrainer(RegressionTrainer):
    """Experience is endpoints at a noise level, their tilted score, and path points noisier than they are.

    With the reward of clean images there are path points at the levels below too: states of the trajectory itself,
    whose tilted score is found as the endpoint's is.
    """

    @classmethod
    def weighs_by_control(cls, recipe: Recipe) -> bool:
        """Losses are weighted by c_k^2; with the reward of noisy endpoints the last steps have none."""
        assert isinstance(recipe.method, EAM)
        return recipe.method.reward_at == "clean"

    @property
    def section(self) -> EAM:
        """The recipe's `[method]`."""
        assert isinstance(self.recipe.method, EAM)
        return self.recipe.method

    @property
    def end(self) -> int:
        """The endpoint's step."""
        return endpoint_step(self.problem.steps, self.section.endpoint_level, self.section.steps_before_endpoint)

    @property
    def clean(self) -> bool:
        """Whether the reward is that of the clean image."""
        return self.section.reward_at == "clean"

    @property
    def available(self) -> int:
        """All steps with noise (or all), or those before the endpoint's: then levels below it get no training."""
        steps = self.problem.steps
        return len(steps.controlled) or len(steps) if self.clean else self.end

    @property
    def sampled(self) -> int:
        """Steps on to the clean image, or to the endpoint: the rest of the trajectory is not needed."""
        return len(self.problem.steps) if self.clean else self.end

    def item_weights(self, k: Tensor) -> Tensor:
        """What a change of the prediction costs in the divergence of the path laws, relative to the mean of the steps.

        Where changes are cheap, as at the noisy end of a flow path, their noise is too.
        """
        scale = self.problem.steps.control_scale[: self.available].square()
        return scale[k] / scale.mean() if bool(scale.isfinite().all()) else torch.ones(len(k), dtype=scale.dtype)

    def remarks(self) -> Iterator[Notice]:
        """The endpoint's level, which is that of a step."""
        yield from super().remarks()
        level = float(self.problem.steps.s[self.end])
        yield Notice("endpoint", f"Endpoints are taken at noise level {level:.3g}.", values={"level": level})

    def compute_experience(self, samples: Sequence[Sample], passes: int, step: int) -> PathPoints:
        """Endpoints, the gradient of their reward, one base prediction each, and targets at K path points."""
        prompts = [sample.prompt for sample in samples]
        indices, without_prompt = self.indices(samples), dropped(self.problem, samples)
        with self.clock.phase("rollout"), self.sampler.applied():
            conditioning, trajectory = self.draw(samples, step)
        used = conditioning.dropped(without_prompt)
        with self.clock.phase("reward gradient"):
            found = reward_gradient(self.problem, trajectory.terminal, samples)
            require_finite_reward(found, step, prompts)
        with self.clock.phase("adjoint"), self.problem.policy.only_base():
            points = self.renoised_points(samples, indices, trajectory, used, found.gradient)
            if self.clean:
                self.fill_in_below(points, indices, trajectory, used, found.gradient)
            if self.section.law == "sampler":
                points = in_steps_of(self.problem.steps, indices, points)
            require_finite(points.targets, "target", step, "adjoint", prompts, remedy(self.recipe))
        return PathPoints(
            prompts=tuple(prompts), conditioning=conditioning, rewards=found.rewards, terms=found.terms,
            indices=indices, states=points.states, base_predictions=points.base, targets=points.targets,
            dropped=without_prompt, clamped_share=found.clamped_share,
            groups=torch.zeros(len(samples), dtype=torch.long),
            noted={"null_drift": null_drift(points.null, points.base)},
        )  # fmt: skip

    def renoised_points(
        self, samples: Sequence[Sample], indices: Tensor, trajectory: Trajectory, used: Conditioning, gradient: Tensor
    ) -> Points:
        """Path points at steps `indices` (B, K) no later than the endpoint's; others are left empty, NaN."""
        steps, end, noises = self.problem.steps, self.end, self.noises(samples)
        x, base = trajectory.states[:, end], self.problem.base(used, self.problem.control_guidance)
        k = torch.full((len(x),), end)
        prediction, gradient = carried(steps, base, k, x, gradient) if self.clean else (base_at(base, k, x), gradient)
        untilted = -steps.noise(prediction, k, x) / float(steps.s[end])
        points = Points(*(torch.full_like(noises, torch.nan) for _ in range(4)))
        for rows, column in batches(indices <= end):
            at_step, here = indices[rows, column], x[rows]
            score, noise = untilted[rows], noises[rows, column]
            tilted = score + self.section.reward_multiplier * gradient[rows]
            points.states[rows, column], points.targets[rows, column] = renoised(
                steps, end, at_step, here, tilted, noise
            )
            points.null[rows, column] = renoised(steps, end, at_step, here, score, noise)[1]
            points.base[rows, column] = base_at(base.rows(rows.to(x.device)), at_step, points.states[rows, column])
        return points

    def fill_in_below(
        self, points: Points, indices: Tensor, trajectory: Trajectory, used: Conditioning, gradient: Tensor
    ) -> None:
        """Path points at later steps than the endpoint's: the trajectory's own states."""
        steps, base = self.problem.steps, self.problem.base(used, self.problem.control_guidance)
        for rows, column in batches(indices > self.end):
            k = indices[rows, column]
            x = trajectory.states[rows, k]
            prediction, slope = carried(steps, base.rows(rows.to(x.device)), k, x, gradient[rows])
            shift = self.section.reward_multiplier * at(steps.s, k, x) * slope
            if steps.prediction_type == "flow":
                shift = shift / at(steps.alpha, k, x)
            points.states[rows, column], points.base[rows, column] = x, prediction
            points.targets[rows, column], points.null[rows, column] = prediction - shift, prediction


@dataclass(frozen=True)
class Points:
    """What is known of path points, (B, K, ...) each."""

    states: Tensor
    targets: Tensor
    null: Tensor
    """Targets without a reward."""
    base: Tensor
    """The base's predictions."""


def in_steps_of(steps: AffineSteps, indices: Tensor, points: Points) -> Points:
    """The same with targets that tilt the law of what these steps draw, where they have noise.

    The tilted model's prediction moves the mean of x_{k+1} by the whole variance of x_{k+1} given x_k, times the slope
    of the value. A step with too little noise for that is tilted by its own variance only (docs/method.md section 9).
    """
    share = torch.where(steps.sigma > 0, steps.noise_share, 1.0)[indices]
    share = share.to(points.base).view(*indices.shape, *[1] * (points.base.ndim - 2))
    targets, null = (points.base + share * (each - points.base) for each in (points.targets, points.null))
    return replace(points, targets=targets, null=null)


def batches(wanted: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows and columns of the wanted path points (B, K), at most B at a time."""
    rows, columns = torch.nonzero(wanted.T).unbind(1)[::-1]
    if len(rows):
        yield from zip(rows.split(len(wanted)), columns.split(len(wanted)), strict=True)


@torch.no_grad()
def base_at(base: NetworkPredictor, k: Tensor, x: Tensor) -> Tensor:
    """The base's prediction (B, ...) at states x of steps k (B,)."""
    return base(x, k)


def carried(
    steps: AffineSteps, base: NetworkPredictor, k: Tensor, x: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor]:
    """The base's prediction at states x of steps k (B,), and the gradient of a reward there, (B, ...) each.

    The `gradient` at clean latents is carried back through the base's prediction of them: one long step of the lean
    adjoint.
    """
    own, weight = steps.to_data
    state = x.detach().requires_grad_(True)
    with torch.enable_grad():
        prediction = base(state, k)
    product = vector_jacobian_product(prediction, state, gradient)
    return prediction.detach(), at(own, k, x) * gradient + at(weight, k, x) * product


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
