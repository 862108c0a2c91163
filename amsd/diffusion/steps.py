"""Affine steps x_{k+1} = A_k x_k + B_k f_k + sigma_k z_k of a Gaussian path (docs/method.md sections 1 and 10).

A path point is x = alpha x_data + s noise. On a variance-preserving path (DDIM) f is the noise prediction, on a flow
path the velocity v = noise - x_data: the path's own prediction.

Sources: Song et al., "Denoising Diffusion Implicit Models", eq. 12 and 16; Domingo-Enrich et al., "Adjoint
Matching", ICLR 2025, Theorem 1 (memoryless noise schedule, eta = 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast, overload

import torch
from torch import Tensor

from amsd.rows import on_device

PredictionType = Literal["epsilon", "v_prediction", "sample", "flow"]
"""What the network's raw output is; `flow` is the velocity of a flow path, the others belong to DDIM's path."""
Index = int | Tensor
"""A step index k, one for the whole batch or a LongTensor (B,) on the CPU with one per row."""


@dataclass(frozen=True)
class AffineSteps:
    """Coefficients of the N steps of one sampler; every table is float64 (N,) on the CPU, noisiest step first."""

    timesteps: Tensor
    """Network times t_k: integers (N,) of the training table, which bf16 would round; on a flow path 1000 s_k."""
    alpha: Tensor
    """Weight alpha_k of the data in x_k."""
    s: Tensor
    """Weight s_k of the noise in x_k."""
    A: Tensor
    """Weight of the state in the mean."""
    B: Tensor
    """Weight of the path's own prediction in the mean."""
    sigma: Tensor
    """Standard deviation of the step."""
    clamped: tuple[int, ...]
    """Steps where eta was too large and sigma was lowered to the noise s_{k+1} that the next state has."""
    prediction_type: PredictionType

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def control_scale(self) -> Tensor:
        """c_k = B_k / sigma_k, infinite where the step has no noise and therefore no control."""
        return self.B / self.sigma

    @property
    def controlled(self) -> Tensor:
        """Indices of the steps with noise, the only ones that can be loss steps; LongTensor."""
        return torch.nonzero(self.sigma > 0).flatten()

    @property
    def alpha_bar(self) -> Tensor:
        """alpha_k^2: on DDIM's path the cumulative product of alphas at t_k."""
        return self.alpha.square()

    def mean(self, k: Index, x: Tensor, prediction: Tensor) -> Tensor:
        """mu_k(x, f) = A_k x + B_k f, shape of x (B, ...)."""
        return at(self.A, k, x) * x + at(self.B, k, x) * prediction

    def step(self, k: Index, x: Tensor, prediction: Tensor, noise: Tensor) -> Tensor:
        """x_{k+1} from x_k, the path's own prediction and standard normal noise, all (B, ...)."""
        return self.mean(k, x, prediction) + at(self.sigma, k, x) * noise

    def prediction(self, output: Tensor, k: Index, x: Tensor) -> Tensor:
        """The network's raw output as the path's own prediction (an affine map, so it commutes with guidance)."""
        if self.prediction_type in ("epsilon", "flow"):
            return output
        alpha, s = at(self.alpha, k, x), at(self.s, k, x)
        if self.prediction_type == "v_prediction":
            return alpha * output + s * x
        return (x - alpha * output) / s

    def original(self, output: Tensor, k: Index, x: Tensor) -> Tensor:
        """The network's raw output as a prediction of x_data (B, ...); infinite for a noise where alpha_k = 0."""
        if self.prediction_type == "sample":
            return output
        if self.prediction_type == "v_prediction":
            return at(self.alpha, k, x) * x - at(self.s, k, x) * output
        return self.data(output, k, x)

    def data(self, prediction: Tensor, k: Index, x: Tensor) -> Tensor:
        """The predicted x_data (B, ...) at x = x_k; infinite where DDIM's path has no signal (alpha_k = 0)."""
        alpha, s = at(self.alpha, k, x), at(self.s, k, x)
        return x - s * prediction if self.prediction_type == "flow" else (x - s * prediction) / alpha

    @property
    def to_data(self) -> tuple[Tensor, Tensor]:
        """Weights of the state and of the path's own prediction in the predicted x_data (`data`), (N,) each."""
        own = torch.ones_like(self.alpha) if self.prediction_type == "flow" else 1 / self.alpha
        return own, -self.s * own

    def noise(self, prediction: Tensor, k: Index, x: Tensor) -> Tensor:
        """The predicted noise (B, ...) at x = x_k."""
        return x + at(self.alpha, k, x) * prediction if self.prediction_type == "flow" else prediction

    def target(self, data: Tensor, noise: Tensor) -> Tensor:
        """The path's own prediction that is right at a path point of x_data and noise, all (B, ...)."""
        return noise - data if self.prediction_type == "flow" else noise

    def point(self, k: Index, data: Tensor, noise: Tensor) -> Tensor:
        """The path point alpha_k x_data + s_k noise, (B, ...)."""
        return at(self.alpha, k, data) * data + at(self.s, k, data) * noise

    @property
    def noise_share(self) -> Tensor:
        """sigma_k^2 over the variance of x_{k+1} given x_k, for data N(0, I), (N,); 1 in the limit of many steps.

        The step takes its predicted data for certain: what they may be otherwise is not in its noise.
        """
        data_variance = self.s.square() / (self.alpha.square() + self.s.square())
        weight = self.B / self.to_data[1]
        return self.sigma.square() / (self.sigma.square() + weight.square() * data_variance)

    @property
    def unit_variance_slope(self) -> Tensor:
        """Derivative in x of the exact prediction where data are N(0, I), (N,)."""
        variance = self.alpha.square() + self.s.square()
        return (self.s - self.alpha if self.prediction_type == "flow" else self.s) / variance


def affine_steps(
    alphas_cumprod: Tensor,
    timesteps: Tensor,
    final_alpha_cumprod: float | Tensor,
    eta: float,
    prediction_type: str = "epsilon",
) -> AffineSteps:
    """Coefficients for the grid `timesteps` (N,), descending, into the training table `alphas_cumprod` (T,).

    The next point of the grid is the target of each step, also where N does not divide T; the last step ends at
    `final_alpha_cumprod` (1 is noiseless).
    """
    table = alphas_cumprod.detach().to("cpu", torch.float64)
    grid = timesteps.detach().to("cpu", torch.long)
    now = table[grid]
    after = torch.cat([now[1:], torch.as_tensor(final_alpha_cumprod, dtype=torch.float64).reshape(1).cpu()])
    sigma = eta * ((1 - after) / (1 - now) * (1 - now / after)).clamp(min=0).sqrt()
    # Beyond this the direction pointing to x would need the root of a negative number.
    largest = (1 - after).sqrt()
    clamped = tuple(torch.nonzero(sigma > largest * (1 + 1e-12)).flatten().tolist())
    sigma = torch.minimum(sigma, largest)
    direction = (1 - after - sigma**2).clamp(min=0).sqrt()
    return AffineSteps(
        timesteps=grid,
        alpha=now.sqrt(),
        s=(1 - now).sqrt(),
        A=(after / now).sqrt(),
        B=direction - (after * (1 - now) / now).sqrt(),
        sigma=sigma,
        clamped=clamped,
        prediction_type=cast(PredictionType, prediction_type),
    )


def flow_steps(levels: Tensor, timesteps: Tensor, eta: float) -> AffineSteps:
    """Coefficients on the flow path x = (1 - s) x_data + s noise (docs/method.md section 10).

    Args:
        levels: s_0 > ... > s_N = 0, (N + 1,).
        timesteps: what the network is told at s_0 ... s_{N-1}, (N,).
        eta: 0 is the Euler step, 1 is memoryless.
    """
    grid = levels.detach().to("cpu", torch.float64)
    now, after = grid[:-1], grid[1:]
    alpha, alpha_after = 1 - now, 1 - after
    sigma = eta * (after / now) * (now**2 - (alpha / alpha_after) ** 2 * after**2).clamp(min=0).sqrt()
    clamped = tuple(torch.nonzero(sigma > after * (1 + 1e-12)).flatten().tolist())
    sigma = torch.minimum(sigma, after)
    direction = (after**2 - sigma**2).clamp(min=0).sqrt()
    return AffineSteps(
        timesteps=timesteps.detach().cpu(),
        alpha=alpha,
        s=now,
        A=alpha_after + direction,
        B=direction * alpha - alpha_after * now,
        sigma=sigma,
        clamped=clamped,
        prediction_type="flow",
    )


@overload
def at(table: Tensor, k: int, like: Tensor) -> float: ...
@overload
def at(table: Tensor, k: Tensor, like: Tensor) -> Tensor: ...
@overload
def at(table: Tensor, k: Index, like: Tensor) -> Tensor | float: ...
def at(table: Tensor, k: Index, like: Tensor) -> Tensor | float:
    """`table[k]` as a factor of `like` (B, ...): a number for one step, else shaped to broadcast over `like`.

    A number travels to a device with the operation that it belongs to, so a loop over steps never waits for a copy.
    """
    if isinstance(k, int):
        return float(table[k])
    return on_device(table[k].to(like.dtype), like.device).reshape(-1, *[1] * (like.ndim - 1))
