"""The lean adjoint against finite differences, back-propagation through the base-mean chain, and closed forms."""

import math

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from amsd.diffusion.families.ddim_scheduler import SOCDDIMScheduler
from amsd.diffusion.steps import AffineSteps
from amsd.matching import lean_adjoint
from amsd.recipe import Schedule


def steps_of(count: int, eta: float = 1.0, final_step: str = "noiseless") -> AffineSteps:
    model = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    schedule = Schedule.model_validate({"num_inference_steps": count, "final_step": final_step})
    return SOCDDIMScheduler.for_recipe(model, schedule).affine(eta)


class Net(nn.Module):
    """A small nonlinear network that also depends on the step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 6)).double()
        self.rows = 0

    def forward(self, x: Tensor, k: int, rows: Tensor | None = None) -> Tensor:
        self.rows += len(x)
        out: Tensor = self.body(x.flatten(1) + 0.1 * k).view_as(x)
        return out


@pytest.fixture
def case() -> tuple[AffineSteps, Net, Tensor, Tensor]:
    steps, net = steps_of(7), Net()
    random = torch.Generator().manual_seed(1)
    states = torch.randn(3, 8, 2, 3, generator=random, dtype=torch.float64)
    center = torch.randn(2, 3, generator=random, dtype=torch.float64)
    return steps, net, states, center


def chain_reward(steps: AffineSteps, net: Net, states: Tensor, center: Tensor, start: int, x: Tensor) -> Tensor:
    """V along the base-mean chain from x_start, with the recorded deviations from it kept fixed; (B,)."""
    for k in range(start, len(steps)):
        deviation = states[:, k + 1] - steps.mean(k, states[:, k], net(states[:, k], k)).detach()
        x = steps.mean(k, x, net(x, k)) + deviation
    return 0.5 * (x - center).square().flatten(1).sum(1)


def test_equals_back_propagation_through_the_base_mean_chain(case: tuple[AffineSteps, Net, Tensor, Tensor]) -> None:
    steps, net, states, center = case
    found = lean_adjoint(states[:, -1] - center, states, steps.A, steps.B, net, torch.zeros(3, dtype=torch.long))
    for start in (0, 3, 6):
        x = states[:, start].clone().requires_grad_(True)
        (expected,) = torch.autograd.grad(chain_reward(steps, net, states, center, start, x).sum(), x)
        assert torch.allclose(found.adjoints[:, start], expected, rtol=1e-10, atol=1e-10)


def test_equals_central_differences(case: tuple[AffineSteps, Net, Tensor, Tensor]) -> None:
    steps, net, states, center = case
    found = lean_adjoint(states[:, -1] - center, states, steps.A, steps.B, net, torch.zeros(3, dtype=torch.long))
    direction = torch.randn(states[:, 0].shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    h = 1e-5
    with torch.no_grad():
        ends = [chain_reward(steps, net, states, center, 0, states[:, 0] + s * h * direction) for s in (1, -1)]
    slope = (found.adjoints[:, 0] * direction).flatten(1).sum(1)
    assert torch.allclose(slope, (ends[0] - ends[1]) / (2 * h), rtol=1e-7)


def test_rows_stop_at_their_own_index_and_cost_nothing_more(case: tuple[AffineSteps, Net, Tensor, Tensor]) -> None:
    steps, net, states, center = case
    terminal = states[:, -1] - center
    full = lean_adjoint(terminal, states, steps.A, steps.B, net, torch.zeros(3, dtype=torch.long))
    lowest = torch.tensor([7, 2, 5])
    net.rows = 0
    partial = lean_adjoint(terminal, states, steps.A, steps.B, net, lowest)
    assert net.rows == (7 - lowest).sum()
    for row, low in enumerate(lowest.tolist()):
        assert torch.allclose(partial.adjoints[row, low:], full.adjoints[row, low:], rtol=1e-12, atol=1e-12)
        assert partial.adjoints[row, :low].isnan().all()
        assert partial.base_predictions[row, :low].isnan().all()
        assert torch.allclose(partial.base_predictions[row, low:], full.base_predictions[row, low:], rtol=1e-12)


def gaussian_errors(count: int, eta: float) -> tuple[float, float]:
    """Relative error of the terminal mean shift at the fixed point u_k = -sigma_k a, for a_k and for a_{k+1}.

    Base data N(0.5, 0.25) with the exact (linear) prediction, reward r(x) = x, lambda = 1; the exact tilt of the
    discrete sampler shifts the terminal mean by its own variance.
    """
    steps = steps_of(count, eta, "midpoint")
    spread = 0.25 * steps.alpha_bar + 1 - steps.alpha_bar

    def prediction(x: Tensor, k: int, rows: Tensor | None = None) -> Tensor:
        bar = steps.alpha_bar[k]
        return (1 - bar).sqrt() * (x - bar.sqrt() * 0.5) / spread[k]

    states = torch.zeros(1, count + 1, 1, dtype=torch.float64)
    terminal = -torch.ones(1, 1, dtype=torch.float64)
    a = lean_adjoint(terminal, states, steps.A, steps.B, prediction, torch.zeros(1, dtype=torch.long)).adjoints[0, :, 0]
    slope = steps.A + steps.B * (1 - steps.alpha_bar).sqrt() / spread
    variance, shift = torch.ones((), dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for k in range(count):
        variance = slope[k] ** 2 * variance + steps.sigma[k] ** 2
        control = -steps.sigma[k] * torch.stack([a[k], a[k + 1]])
        shift = slope[k] * shift + steps.sigma[k] * control
    current, following = (shift / variance - 1).tolist()
    return current, following


@pytest.mark.parametrize(
    ("count", "eta", "current", "following"),
    [
        (5, 1.0, -45.7, -0.3),
        (10, 1.0, -29.0, -0.2),
        (20, 1.0, -16.4, -0.2),
        (50, 1.0, -7.1, -0.1),
        (200, 1.0, -1.9, -0.1),
        (50, 0.7, -8.9, -4.6),
        (50, 0.3, -58.6, -57.8),
    ],
)
def test_table_of_the_two_conventions(count: int, eta: float, current: float, following: float) -> None:
    found = [100 * error for error in gaussian_errors(count, eta)]
    assert found == pytest.approx([current, following], abs=0.051)


def test_a_k_is_wrong_by_order_one_over_n() -> None:
    ratio = gaussian_errors(100, 1.0)[0] / gaussian_errors(200, 1.0)[0]
    assert math.log2(ratio) == pytest.approx(1, abs=0.1)
