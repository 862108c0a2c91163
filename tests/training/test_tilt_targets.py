"""What RAM and EAM converge to on a Gaussian base, by hand and by quadrature (trained: test_tilt_trained.py).

Base N(0, 1), reward -k x^2/2 (or linear), lambda k = 1, 5, 25; the derivations are in docs/method.md section 9. RAM's
W(lambda k)/(lambda k) holds for the probability-flow sampler (eta = 0) and an `old` that is the exact conditional mean
of its own endpoints. The policy's own prediction is not that mean, and with it RAM ends nearer to the tilt.
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp

import pytest
import torch
from scipy.integrate import quad
from scipy.special import lambertw
from torch import Tensor

from amsd.diffusion.steps import AffineSteps, affine_steps, flow_steps
from amsd.training.methods.eam import endpoint_step, renoised
from tests.training.linear import (
    Linear,
    adjoint_matching_fixed_point,
    eam_clean_fixed_point,
    eam_fixed_point,
    ram_fixed_point,
    regressed,
)
from tests.training.test_closed_form import steps_of

STRENGTHS = (1.0, 5.0, 25.0)


def quadratic(strength: float) -> Callable[[Tensor], Tensor]:
    return lambda x: -strength * x.square() / 2


def fine_steps(count: int, eta: float) -> AffineSteps:
    """Levels equally spaced in alpha^2: near the limit of infinitely many steps."""
    levels = torch.linspace(1e-4, 1, count + 1, dtype=torch.float64)[:-1].flip(0)
    return affine_steps(levels, torch.arange(count - 1, -1, -1), 1.0, eta)


def shifted_flow(count: int, eta: float) -> AffineSteps:
    """The flow path on a grid of shift 3."""
    u = torch.linspace(1, 0, count + 1, dtype=torch.float64)
    levels = 3 * u / (1 + 2 * u)
    return flow_steps(levels, 1000 * levels[:-1], eta)


def by_hand(strength: float, eta: int, exact: bool) -> float:
    """The endpoint variance v at which RAM rests, in the limit of infinitely many steps (docs/method.md section 9)."""
    from scipy.optimize import brentq

    def after(v: float) -> float:
        pull = strength * v * v
        if exact:
            if eta == 0:
                return exp(-strength * v)
            grown = quad(lambda u: exp(2 * pull * (u / (1 - u * (1 - v)) - 1 / v)), 0, 1, limit=400, points=[0.9, 0.99])
            return float(grown[0])
        c = 1 - v + pull
        power = 2 * pull / c
        left = max(1 - c, 0.0)
        return float(left ** (power / 2) if eta == 0 else (left**power - left) / (c * (1 - power)))

    top = 1.0 if exact else min(1.0, 1 / strength) * (1 - 1e-12)
    if after(top) > top:  # closer to 1/strength than that
        return top
    return float(brentq(lambda v: after(v) - v, 1e-3, top))


def test_what_ram_rests_at_by_hand() -> None:
    found = {
        (eta, exact): [round(by_hand(s, eta, exact), 4) for s in STRENGTHS] for eta in (0, 1) for exact in (True, False)
    }
    assert found[0, True] == pytest.approx([float(lambertw(s).real) / s for s in STRENGTHS], abs=1e-4)
    assert found == {
        (0, True): [0.5671, 0.2653, 0.0944], (0, False): [0.5592, 0.1997, 0.04],
        (1, True): [0.5457, 0.2292, 0.07], (1, False): [0.5401, 0.1955, 0.04],
    }  # fmt: skip


@pytest.mark.parametrize("exact", [True, False], ids=["conditional mean", "own prediction"])
@pytest.mark.parametrize("eta", [0, 1])
@pytest.mark.parametrize("strength", [1.0, 25.0])
def test_quadrature_and_iteration_agree_with_the_hand(strength: float, eta: int, exact: bool) -> None:
    """Least squares by quadrature and a damped iteration, nothing of the derivation; the rest is the discretization."""
    errors = []
    for count in (100, 200):
        steps = fine_steps(count, eta)
        variance = ram_fixed_point(steps, quadratic(strength), exact).law(steps)[1]
        errors.append(variance / by_hand(strength, eta, exact) - 1)
    assert abs(errors[1]) < (0.03 if strength == 1 else 0.12)
    assert abs(errors[1]) < 0.85 * abs(errors[0])  # it goes to zero with the number of steps


@pytest.mark.parametrize("exact", [True, False], ids=["conditional mean", "own prediction"])
@pytest.mark.parametrize("eta", [0, 1])
def test_on_a_flow_path_ram_rests_at_the_same(eta: int, exact: bool) -> None:
    errors = []
    for count in (50, 100):
        steps = shifted_flow(count, eta)
        errors.append(abs(ram_fixed_point(steps, quadratic(1.0), exact).law(steps)[1] / by_hand(1.0, eta, exact) - 1))
    assert errors[1] < 0.07
    assert errors[1] < 0.65 * errors[0]


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_for_a_linear_reward_ram_rests_at_the_exact_tilt_of_its_own_sampler(eta: float) -> None:
    """Reward x: the mean moves by the variance of what the base's sampler draws, and the variance stays."""
    steps = shifted_flow(20, eta)
    mean, variance = ram_fixed_point(steps, lambda x: x).law(steps)
    drawn = Linear.base(steps).law(steps)[1]
    assert (mean, variance) == pytest.approx((drawn, drawn), rel=1e-4)


GRIDS = {"ddim": steps_of, "flow": shifted_flow}
PATHS = {"ddim": steps_of(20, 0.0), "flow": shifted_flow(20, 0.0)}
MANY = {"ddim": steps_of(200, 0.0), "flow": shifted_flow(200, 0.0)}
"""The law of what a sampler draws misses that of its model by an error of first order in its steps."""


@pytest.mark.parametrize("path", MANY)
@pytest.mark.parametrize("strength", STRENGTHS)
def test_eam_rests_at_the_tilt_up_to_the_samplers_own_error(strength: float, path: str) -> None:
    """Without training: the error is 1% at 200 steps and more at 50; at eta = 1 it is about twice that."""
    errors = []
    for steps in (MANY[path], GRIDS[path](50, 0.0)):
        end = endpoint_step(steps, 0.3, 1)
        before = float(steps.alpha[end].square() + steps.s[end].square())
        errors.append(eam_fixed_point(steps, end, strength).law(steps, end)[1] * (1 / before + strength) - 1)
    assert abs(errors[0]) < 0.01
    assert abs(errors[1]) < 0.04


@pytest.mark.parametrize("path", PATHS)
def test_the_line_of_eams_target_is_the_tilted_models_prediction(path: str) -> None:
    """By quadrature, at each step, for endpoints at a noise level whose law is the exact tilt."""
    steps, end = PATHS[path], 15
    before = float(steps.alpha[end].square() + steps.s[end].square())
    for strength in STRENGTHS:
        tilted = 1 / (1 / before + strength)
        x = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None] * tilted**0.5
        for k in (0, 5, 10, 14):
            ratio = float(steps.alpha[k] / steps.alpha[end])
            spread = float(steps.s[k].square() - ratio**2 * steps.s[end].square())
            total = ratio**2 * tilted + spread
            # Affine in endpoint and noise: given the path point, both stand at their conditional means.
            end_mean, noise_mean = ratio * tilted / total * x, spread**0.5 / total * x
            index = torch.full((5,), k)
            point, target = renoised(steps, end, index, end_mean, -end_mean / tilted, noise_mean)
            torch.testing.assert_close(point, x)
            score, s, alpha = -x / total, float(steps.s[k]), float(steps.alpha[k])
            expected = -s * score if path == "ddim" else -(x + s * score) / alpha if alpha > 0 else None
            if expected is not None:
                torch.testing.assert_close(target, expected)
            else:  # pure noise: the velocity is the noise minus the mean of the data, which is 0
                torch.testing.assert_close(target, x)


#: Missing at lambda k = 1, 5, 25, of the tilt of what the base's sampler draws: EAM at level .3, EAM at .7, Adjoint
#: Matching (the table of docs/method.md section 9).
MISSING = {
    ("ddim", 20): ([0.074, 0.209, 0.542], [0.046, 0.154, 0.537], [0.043, 0.153, 0.537]),
    ("ddim", 100): ([0.016, 0.042, 0.110], [0.010, 0.033, 0.108], [0.010, 0.033, 0.108]),
    ("ddim", 400): ([0.004, 0.011, 0.030], [0.003, 0.009, 0.030], [0.003, 0.009, 0.030]),
    ("flow", 20): ([0.093, 0.238, 0.634], [0.061, 0.222, 0.656], [0.060, 0.222, 0.656]),
    ("flow", 100): ([0.022, 0.053, 0.126], [0.015, 0.049, 0.126], [0.015, 0.049, 0.126]),
    ("flow", 400): ([0.006, 0.013, 0.031], [0.004, 0.013, 0.031], [0.004, 0.013, 0.031]),
}


@pytest.mark.parametrize(("path", "count"), MISSING)
def test_with_clean_images_eam_rests_where_adjoint_matching_does(path: str, count: int) -> None:
    steps = GRIDS[path](count, 1.0)
    drawn = Linear.base(steps).law(steps)[1]
    ends = [endpoint_step(steps, level, 1) for level in (0.3, 0.7)]
    for number, strength in enumerate(STRENGTHS):
        policies = [eam_clean_fixed_point(steps, end, strength) for end in ends]
        policies.append(adjoint_matching_fixed_point(steps, strength))
        missing = [policy.law(steps)[1] * (1 / drawn + strength) - 1 for policy in policies]
        assert missing == pytest.approx([column[number] for column in MISSING[path, count]], abs=6e-4)


@pytest.mark.parametrize("path", ["ddim", "flow"])
def test_the_share_of_a_steps_noise_in_closed_form(path: str) -> None:
    """Data N(0, 1) with noise, and the next state given this one: both are Gaussian, and noising is a Markov chain."""
    steps = GRIDS[path](10, 1.0)
    variance, ratio = steps.alpha.square() + steps.s.square(), steps.alpha[:-1] / steps.alpha[1:]
    given = variance[1:] - (ratio * variance[1:]).square() / variance[:-1]
    torch.testing.assert_close(steps.noise_share[:-1], steps.sigma[:-1].square() / given)


def test_eams_target_on_a_flow_path_from_a_clean_endpoint() -> None:
    """-x - s (g + (1 - 2 s) eps)/((1 - s)^2 + s^2), up to the little noise of the last level."""
    levels = torch.tensor([1.0, 0.7, 0.3, 1e-9, 0.0], dtype=torch.float64)
    steps = flow_steps(levels, 1000 * levels[:-1], 1.0)
    x, g, noise = (torch.randn(3, 4, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(3))
    for k in range(3):
        s = float(levels[k])
        _, target = renoised(steps, 3, torch.full((3,), k), x, g, noise)
        torch.testing.assert_close(target, -x - s * (g + (1 - 2 * s) * noise) / ((1 - s) ** 2 + s**2))


def test_regression_by_quadrature_finds_the_conditional_mean() -> None:
    """Of the noise, for endpoints N(m, v): s (x - alpha m)/(alpha^2 v + s^2)."""
    steps, mean, variance = steps_of(7), 0.3, 0.2
    found = regressed(steps, lambda x, end, noise: steps.target(end, noise), (mean, variance))
    slope = steps.s / (steps.alpha.square() * variance + steps.s.square())
    torch.testing.assert_close(found.e, slope)
    torch.testing.assert_close(found.o, -slope * steps.alpha * mean)
