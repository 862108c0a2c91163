"""A Gaussian base N(0, 1) as a pipeline whose network is linear at each step: what methods without an adjoint equation
converge to is known by quadrature, for any path and any eta.

The library sees a model family like any other (`tests/training/gaussian.py`), so its own trainers run on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from amsd.diffusion.steps import AffineSteps
from amsd.recipe import Schedule
from amsd.rewards.combination import RewardValues
from tests.training.gaussian import RANGE, GaussianFamily


class LinearNetwork(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Prediction (f_k + w_k) x + b_k at step k, with f_k that of the base and w_k, b_k zero at first."""

    @register_to_config
    def __init__(self, times: list[float], slopes: list[float]) -> None:
        super().__init__()
        self.w, self.b = (nn.Parameter(torch.zeros(len(times))) for _ in range(2))
        self.register_buffer("at_times", torch.tensor(times), persistent=False)
        self.register_buffer("at_first", torch.tensor(slopes), persistent=False)

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """Shape of x (B, 3, 1, 1)."""
        k = (timesteps.float()[:, None] - self.at_times).abs().argmin(1)
        return (self.at_first + self.w)[k].view(-1, 1, 1, 1) * x + self.b[k].view(-1, 1, 1, 1)


class LinearFamily(GaussianFamily):
    """The family of that network, on any steps."""

    def __init__(self, steps: AffineSteps) -> None:
        super().__init__(2)
        self._steps = steps
        self.pipeline.unet = LinearNetwork(steps.timesteps.tolist(), steps.unit_variance_slope.tolist())

    def steps(self, schedule: Schedule) -> AffineSteps:
        """Those that it was made for."""
        return self._steps


@dataclass(frozen=True)
class Linear:
    """Predictions e_k x + o_k, each (N,), float64."""

    e: Tensor
    o: Tensor

    @classmethod
    def of(cls, network: LinearNetwork) -> Linear:
        """What was learned."""
        return cls((network.at_first + network.w).detach().double(), network.b.detach().double())

    @classmethod
    def base(cls, steps: AffineSteps) -> Linear:
        """The exact prediction of N(0, 1)."""
        return cls(steps.unit_variance_slope, torch.zeros(len(steps), dtype=torch.float64))

    def gains(self, steps: AffineSteps) -> Tensor:
        """Factor of x_k in the mean of x_{k+1}, (N,)."""
        return steps.A + steps.B * self.e

    def rest(self, steps: AffineSteps) -> Tensor:
        """G_k of E[x_N | x_k] = G_k x_k + constant, (N,)."""
        return self.gains(steps).flip(0).cumprod(0).flip(0)

    def law(self, steps: AffineSteps, count: int | None = None) -> tuple[float, float]:
        """Mean and variance of the state after `count` steps (all), without sampling."""
        chosen = slice(len(steps) if count is None else count)
        gain = self.gains(steps)[chosen]
        after = torch.cat([gain.flip(0).cumprod(0).flip(0)[1:], torch.ones(1, dtype=torch.float64)])
        mean = (after * (steps.B * self.o)[chosen]).sum()
        variance = gain.prod().square() + (after * steps.sigma[chosen]).square().sum()
        return float(mean), float(variance)


def latents(images: Tensor) -> Tensor:
    """Images back to latents (B, 3)."""
    return (images[:, :, 0, 0] - 0.5) * RANGE


def reward_of(one: Callable[[Tensor], Tensor]) -> Callable[[Tensor, object], RewardValues]:
    """A reward that is the sum over the three latent numbers."""

    def reward(images: Tensor, prompts: object) -> RewardValues:
        total = one(latents(images)).sum(1)
        return RewardValues(total, {"sum": total})

    return reward


#: Gauss-Hermite quadrature, exact for what is of degree 7 in endpoint and noise.
_NODES, _WEIGHTS = (torch.from_numpy(value) for value in np.polynomial.hermite_e.hermegauss(4))
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()
_WEIGHT = torch.outer(_WEIGHTS, _WEIGHTS)
Target = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x, endpoint, noise) at all steps, each (N, 4, 4) -> what is regressed."""


def _column(values: Tensor) -> Tensor:
    return values[:, None, None]


def regressed(steps: AffineSteps, target: Target, law: tuple[float, float]) -> Linear:
    """The least-squares line of a target in x_k at each step, for endpoints of this mean and variance."""
    end, noise = (law[0] + law[1] ** 0.5 * _NODES)[None, :, None], _NODES[None, None, :]
    x = _column(steps.alpha) * end + _column(steps.s) * noise
    y = target(x, end, noise)
    mean_x, mean_y = ((_WEIGHT * value).sum((1, 2)) for value in (x, y))
    away = x - _column(mean_x)
    e = (_WEIGHT * away * (y - _column(mean_y))).sum((1, 2)) / (_WEIGHT * away.square()).sum((1, 2))
    return Linear(e, mean_y - e * mean_x)


def ram_regression(
    steps: AffineSteps, scaled_reward: Callable[[Tensor], Tensor], law: tuple[float, float], old: Linear
) -> Linear:
    """What RAM's loss asks for: base + lambda (r - E r) (path target - old)."""
    base = Linear.base(steps)
    mean = (_WEIGHTS * scaled_reward(law[0] + law[1] ** 0.5 * _NODES)).sum()

    def target(x: Tensor, end: Tensor, noise: Tensor) -> Tensor:
        direction = steps.target(end, noise) - (_column(old.e) * x + _column(old.o))
        return _column(base.e) * x + (scaled_reward(end) - mean) * direction

    return regressed(steps, target, law)


def ram_fixed_point(
    steps: AffineSteps, scaled_reward: Callable[[Tensor], Tensor], exact: bool = False, damping: float = 0.05
) -> Linear:
    """What RAM converges to: with the policy's own prediction as `old`, or with the exact conditional mean."""
    policy = Linear.base(steps)
    for _ in range(50_000):
        law = policy.law(steps)
        old = regressed(steps, lambda x, end, noise: steps.target(end, noise), law) if exact else policy
        new = ram_regression(steps, scaled_reward, law, old)
        policy = Linear(policy.e + damping * (new.e - policy.e), policy.o + damping * (new.o - policy.o))
        if abs(policy.law(steps)[1] - law[1]) + abs(policy.law(steps)[0] - law[0]) < 1e-9 * damping:
            return policy
    raise AssertionError(f"no fixed point: {policy.law(steps)}")


def eam_fixed_point(steps: AffineSteps, end: int, strength: float, damping: float = 0.05) -> Linear:
    """What EAM converges to for the reward -strength x^2/2 of endpoints at step `end`, at any number of steps.

    Its targets are affine, so the line through them follows from the law of the endpoints that the policy draws.
    """
    before = float(steps.alpha[end].square() + steps.s[end].square())
    slope = -(1 / before + strength)  # of the tilted score at an endpoint
    ratio = steps.alpha[:end] / steps.alpha[end]
    spread = (steps.s[:end].square() - (ratio * steps.s[end]).square()).clamp(min=0)
    policy = Linear.base(steps)
    for _ in range(50_000):
        law = policy.law(steps, end)[1]
        total = ratio.square() * law + spread  # variance of x_k
        score = (ratio * slope * ratio * law - spread) / (ratio.square() + spread) / total
        s, alpha = steps.s[:end], steps.alpha[:end]
        e = policy.e.clone()
        e[:end] = -s * score
        if steps.prediction_type == "flow":
            e[:end] = torch.where(alpha > 0, -(1 + s * score) / alpha, 1.0)
        policy = Linear(policy.e + damping * (e - policy.e), policy.o)
        if abs(policy.law(steps, end)[1] - law) < 1e-10 * damping:
            return policy
    raise AssertionError(f"no fixed point: {policy.law(steps, end)}")


def eam_clean_fixed_point(steps: AffineSteps, end: int, strength: float, damping: float = 0.1) -> Linear:
    """What EAM converges to for the reward -strength x^2/2 of clean images, at any number of steps with noise.

    Path points before the endpoint's step are noised endpoints, those below are the trajectory's states x_k. With
    E[x_N | x_k] = G_k x_k and the base's predicted data J_k x_k, the tilted score there is the line
    -(1/variance of the base + strength J_k G_k) x_k. Each step takes its share of the tilt (law = "sampler").
    """
    base = policy = Linear.base(steps)
    own, weight = steps.to_data
    ratio = steps.alpha / steps.alpha[end]
    spread = (steps.s.square() - (ratio * steps.s[end]).square()).clamp(min=0)
    below = torch.arange(len(steps)) > end
    share = torch.where(steps.sigma > 0, steps.noise_share, 0.0)  # no path points at a step without noise
    for _ in range(50_000):
        slope = -1 / (steps.alpha.square() + steps.s.square()) - strength * (own + weight * base.e) * policy.rest(steps)
        total = ratio.square() * policy.law(steps, end)[1] + spread  # variance of x_k as a noised endpoint
        noised = (slope[end] * (total - spread) - spread) / (ratio.square() + spread) / total
        score = torch.where(below, slope, noised)
        e = -steps.s * score
        if steps.prediction_type == "flow":
            e = torch.where(steps.alpha > 0, -(1 + steps.s * score) / steps.alpha, 1.0)
        new = base.e + share * (e - base.e)
        if float((new - policy.e).abs().max()) < 1e-9:
            return policy
        policy = Linear(policy.e + damping * (new - policy.e), policy.o)
    raise AssertionError(f"no fixed point: {policy.law(steps)}")


def adjoint_matching_fixed_point(steps: AffineSteps, strength: float, damping: float = 0.1) -> Linear:
    """What Adjoint Matching converges to for that reward: u_k = -sigma_k E[a_{k+1} | x_k]."""
    base = policy = Linear.base(steps)
    carried = torch.cat([base.rest(steps)[1:], torch.ones(1, dtype=torch.float64)])
    for _ in range(50_000):
        new = base.e - strength * steps.sigma.square() * carried * policy.rest(steps) / steps.B
        if float((new - policy.e).abs().max()) < 1e-9:
            return policy
        policy = Linear(policy.e + damping * (new - policy.e), policy.o)
    raise AssertionError(f"no fixed point: {policy.law(steps)}")
