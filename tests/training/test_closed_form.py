"""Adjoint Matching where the answer is known: a Gaussian base, and a mixture of Gaussians.

The Gaussian base has mean 0.5 and s.d. 0.5, its exact noise prediction, and the reward -(x - c)^2 / 2 times lambda.
There the lean adjoint is a_k = G_k lambda (x_N - c), with G_k the product of the base's slopes from k on, so the policy
that satisfies u_k = -sigma_k E[a_{k+1} | x_k] is affine and a backward recursion gives it.
"""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from amsd.diffusion.rollout import rollout
from amsd.diffusion.steps import AffineSteps, affine_steps
from amsd.matching import control, lean_adjoint, matching_loss, self_normalized_weights

MEAN, SPREAD, CENTER = 0.5, 0.5, 2.0


def steps_of(count: int, eta: float = 1.0) -> AffineSteps:
    """Stable Diffusion's table on the trailing grid, with a noiseless last step."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    grid = (1000 - torch.arange(count, dtype=torch.float64) * 1000 / count).round().long() - 1
    return affine_steps((1 - betas).cumprod(0), grid, 1.0, eta)


def gaussian_slope(steps: AffineSteps) -> Tensor:
    """d eps_0 / d x by step, (N,)."""
    return (1 - steps.alpha_bar).sqrt() / (steps.alpha_bar * SPREAD**2 + 1 - steps.alpha_bar)


@dataclass(frozen=True)
class Affine:
    """Controls u_k(x) = w_k x + b_k, each (N,)."""

    w: Tensor
    b: Tensor

    def terminal(self, steps: AffineSteps) -> tuple[float, float]:
        """Mean and s.d. of x_N under these controls, without sampling."""
        slope, offset = base_step(steps)
        mean, variance = 0.0, 1.0
        for k in range(len(steps)):
            gain = float(slope[k] + steps.sigma[k] * self.w[k])
            mean = gain * mean + float(offset[k] + steps.sigma[k] * self.b[k])
            variance = gain**2 * variance + float(steps.sigma[k]) ** 2
        return mean, variance**0.5


def base_step(steps: AffineSteps) -> tuple[Tensor, Tensor]:
    """Slope and offset of the base mean, mu_k(x) = slope x + offset."""
    jacobian = gaussian_slope(steps)
    return steps.A + steps.B * jacobian, -steps.B * jacobian * steps.alpha_bar.sqrt() * MEAN


def uncontrolled(steps: AffineSteps) -> Affine:
    return Affine(torch.zeros(len(steps)), torch.zeros(len(steps)))


def fixed_point(steps: AffineSteps, multiplier: float) -> Affine:
    """The affine policy with u_k = -sigma_k E[a_{k+1} | x_k] under itself.

    With E[x_N | x_{k+1}] = P x_{k+1} + Q the mean v of x_{k+1} solves v = mu - sigma^2 G lambda (P v + Q - c).
    """
    slope, offset = base_step(steps)
    w, b = torch.zeros(len(steps), dtype=torch.float64), torch.zeros(len(steps), dtype=torch.float64)
    G, P, Q = 1.0, 1.0, 0.0
    for k in reversed(range(len(steps))):
        sigma, s, t = float(steps.sigma[k]), float(slope[k]), float(offset[k])
        pull = sigma**2 * G * multiplier
        mean_slope, mean_offset = s / (1 + pull * P), (t - pull * (Q - CENTER)) / (1 + pull * P)
        if sigma > 0:
            w[k], b[k] = (mean_slope - s) / sigma, (mean_offset - t) / sigma
        P, Q, G = P * mean_slope, P * mean_offset + Q, G * s
    return Affine(w, b)


def exact_tilt(steps: AffineSteps, multiplier: float) -> tuple[float, float]:
    """Mean and s.d. of the sampler's terminal law times exp(lambda r)."""
    mean, spread = uncontrolled(steps).terminal(steps)
    precision = 1 / spread**2 + multiplier
    return (mean / spread**2 + multiplier * CENTER) / precision, precision**-0.5


def errors(steps: AffineSteps, multiplier: float) -> tuple[float, float]:
    """Relative errors of the fixed point's mean shift and s.d. against the exact tilt."""
    before, _ = uncontrolled(steps).terminal(steps)
    found, exact = fixed_point(steps, multiplier).terminal(steps), exact_tilt(steps, multiplier)
    return (found[0] - before) / (exact[0] - before) - 1, found[1] / exact[1] - 1


@pytest.mark.parametrize("multiplier", [0.5, 1.0, 2.0, 4.0, 8.0])
def test_the_fixed_point_is_the_exact_tilt(multiplier: float) -> None:
    mean, spread = errors(steps_of(200), multiplier)
    assert abs(mean) < 0.01
    assert abs(spread) < 0.02


@pytest.mark.parametrize(
    ("multiplier", "missed"), [(0.5, -52.7), (1.0, -50.1), (2.0, -45.7), (4.0, -38.9), (8.0, -29.9)]
)
def test_without_memorylessness_the_fixed_point_misses_the_tilt(multiplier: float, missed: float) -> None:
    """At eta = 0.3, in per cent of the mean's shift; with eta = 1 the same fixed points are within 1% (above).

    With a linear reward 57.8% are missing at any lambda (`tests/matching/test_adjoint.py`). With this quadratic one
    it is more than 40% for lambda <= 2 only: the closer the target is to the reward's optimum, the less can be missed.
    """
    found = 100 * errors(steps_of(200, eta=0.3), multiplier)[0]
    assert found == pytest.approx(missed, abs=0.1)
    assert (found < -40) == (multiplier <= 2)


def test_a_small_network_reaches_the_fixed_point() -> None:
    steps, multiplier = steps_of(10), 2.0
    w, b = (torch.zeros(10, 1, dtype=torch.float64, requires_grad=True) for _ in range(2))
    jacobian, scale = gaussian_slope(steps), steps.control_scale
    count, batch, random = 250, 512, torch.Generator().manual_seed(0)

    def base(x: Tensor, k: int | Tensor, rows: Tensor | None = None) -> Tensor:
        return jacobian[k].reshape(-1, 1) * (x - steps.alpha_bar[k].sqrt().reshape(-1, 1) * MEAN)

    def finetuned(x: Tensor, k: int | Tensor) -> Tensor:
        return base(x, k) + (w[k] * x + b[k]) / scale[k].reshape(-1, 1)

    optimizer = torch.optim.Adam([w, b], lr=0.05)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, count)
    k = steps.controlled.repeat(batch)
    for _ in range(count):
        noise = torch.randn(batch, 11, 1, generator=random, dtype=torch.float64)
        states = rollout(finetuned, steps, noise).states
        terminal = multiplier * (states[:, -1] - CENTER)
        a = lean_adjoint(terminal, states, steps.A, steps.B, base, torch.ones(batch, dtype=torch.long)).adjoints
        x, after = states[:, steps.controlled].flatten(0, 1), a[:, steps.controlled + 1].flatten(0, 1)
        u = control(finetuned(x, k), base(x, k), scale[k, None])
        optimizer.zero_grad()
        matching_loss(u, after, steps.sigma[k, None]).loss.mean().backward()
        optimizer.step()
        decay.step()

    before, _ = uncontrolled(steps).terminal(steps)
    expected = fixed_point(steps, multiplier).terminal(steps)
    found = Affine(w.detach()[:, 0], b.detach()[:, 0]).terminal(steps)
    assert (found[0] - before) / (expected[0] - before) == pytest.approx(1, abs=0.01)
    assert found[1] / expected[1] == pytest.approx(1, abs=0.01)


CENTERS = torch.tensor([[-1.5, 0.0], [1.0, 1.2], [1.0, -1.2]])
SHARES, WIDTH, MULTIPLIER = torch.tensor([0.5, 0.3, 0.2]), 0.4, 3.0


def bounded_reward(x: Tensor) -> Tensor:
    """Between -1 and 1: prefers the right, and the upper of the two modes there."""
    return torch.tanh(0.8 * x[:, 0] + 0.5 * x[:, 1])


class Mixture:
    """Noise prediction of a mixture of Gaussians, exact at every step."""

    def __init__(self, steps: AffineSteps) -> None:
        self.signal, self.noise = steps.alpha_bar.float().sqrt(), (1 - steps.alpha_bar).float().sqrt()

    def __call__(self, x: Tensor, k: int | Tensor, rows: Tensor | None = None) -> Tensor:
        signal, noise = self.signal[k].reshape(-1, 1), self.noise[k].reshape(-1, 1)
        variance = signal**2 * WIDTH**2 + noise**2
        difference = x[:, None] - signal[..., None] * CENTERS
        shares = torch.softmax(SHARES.log() - 0.5 * difference.square().sum(2) / variance, 1)
        return noise * (shares[..., None] * difference).sum(1) / variance


class Network(nn.Module):
    """Base prediction plus a small network's, in units of the control."""

    def __init__(self, base: Mixture, steps: AffineSteps, width: int = 64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.base, self.scale = base, steps.control_scale.float()
        self.body = nn.Sequential(
            nn.Linear(6, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2)
        )
        nn.init.zeros_(self.body[-1].weight)
        nn.init.zeros_(self.body[-1].bias)

    def forward(self, x: Tensor, k: int | Tensor) -> Tensor:
        noise = self.base.noise[k].reshape(-1, 1).expand(len(x), 1)
        signal = self.base.signal[k].reshape(-1, 1).expand(len(x), 1)
        prediction = self.base(x, k)
        u = self.body(torch.cat([x, prediction, noise, signal], 1))
        return prediction + u / self.scale[k].reshape(-1, 1)


def train_on_mixture(steps: AffineSteps, collections: int, updates: int, batch: int, width: int = 64) -> Network:
    base, random = Mixture(steps), torch.Generator().manual_seed(1)
    network = Network(base, steps, width)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, collections * updates)
    controlled, lowest = steps.controlled, torch.ones(batch, dtype=torch.long)
    for _ in range(collections):
        states = rollout(network, steps, torch.randn(batch, len(steps) + 1, 2, generator=random)).states
        last = states[:, -1].clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(bounded_reward(last).sum(), last)
        a = lean_adjoint(-MULTIPLIER * gradient, states, steps.A, steps.B, base, lowest).adjoints
        k = controlled.repeat(batch)
        x, after = states[:, controlled].flatten(0, 1), a[:, controlled + 1].flatten(0, 1)
        for part in torch.randperm(len(k), generator=random).chunk(updates):
            at = k[part]
            u = control(network(x[part], at), base(x[part], at), steps.control_scale.float()[at, None])
            optimizer.zero_grad()
            matching_loss(u, after[part], steps.sigma.float()[at, None]).loss.mean().backward()
            optimizer.step()
            decay.step()
    return network


def energy_test(x: Tensor, y: Tensor, permutations: int = 200) -> tuple[float, float]:
    """Energy distance of two samples of equal size, and its p-value under exchange of their labels."""
    distances = torch.cdist(torch.cat([x, y]), torch.cat([x, y]))
    labels = torch.cat([torch.ones(len(x)), -torch.ones(len(y))]) / len(x)
    random = torch.Generator().manual_seed(2)
    orders = [torch.arange(len(labels))] + [torch.randperm(len(labels), generator=random) for _ in range(permutations)]
    signs = torch.stack([labels[order] for order in orders], 1)
    values = -(signs * (distances @ signs)).sum(0)
    return float(values[0]), float((values >= values[0]).float().mean())


@pytest.mark.slow
def test_a_mixture_is_tilted_as_importance_weights_say() -> None:
    """Indistinguishable in 1500 samples; what 120 000 samples still show comes from training and from N.

    Mean reward minus the target's .8055, share of the lower right mode (target .102): after 200 collections of 512
    +.0001 ± .0007 and .132, with a network three times as wide -.0001 and .126, after 400 collections of 1024 (here)
    -.0011 ± .0008 and .122. So the shares are still on their way: few trajectories on the verge between two modes carry
    the adjoint that moves them. The fixed point itself misses 1.1% of the shift at N = 20 (`test_fixed_point.py`), and
    with N = 50 the same 200 collections are too few (+.014, 20 s.e.).
    """
    steps = steps_of(20)
    network = train_on_mixture(steps, collections=400, updates=10, batch=1024)
    random = torch.Generator().manual_seed(3)
    size, many = 1500, 30_000
    with torch.no_grad():
        finetuned = rollout(network, steps, torch.randn(size, 21, 2, generator=random)).terminal
        base = rollout(Mixture(steps), steps, torch.randn(many, 21, 2, generator=random)).terminal
    weights = self_normalized_weights(MULTIPLIER * bounded_reward(base).double())
    weighted = base[torch.multinomial(weights, size, generator=random)]

    distance, p_value = energy_test(finetuned, weighted)
    distance_before, p_value_before = energy_test(base[:size], weighted)
    assert p_value_before < 0.01  # this many samples tell the base and the target apart
    assert p_value > 0.01  # but not the fine-tuned model and the target
    assert distance < 0.01 * distance_before
    expected = float((weights * bounded_reward(base)).mean())
    error = float(bounded_reward(finetuned).std()) / size**0.5
    assert float(bounded_reward(finetuned).mean()) == pytest.approx(expected, abs=3 * error)
