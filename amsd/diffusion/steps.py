"""The DDIM family as affine steps: x_{k+1} = A_k x_k + B_k eps_k + sigma_k z_k (docs/method.md section 1).

Sources: Song et al., "Denoising Diffusion Implicit Models", eq. 12 and 16; Domingo-Enrich et al., "Adjoint
Matching", ICLR 2025, Theorem 1 (memoryless noise schedule, eta = 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

PredictionType = Literal["epsilon", "v_prediction", "sample"]
Index = int | Tensor
"""A step index k, one for the whole batch or a LongTensor (B,) on the CPU with one per row."""


@dataclass(frozen=True)
class AffineSteps:
    """Coefficients of the N steps of one sampler; every table is float64 (N,) on the CPU, noisiest step first."""

    timesteps: Tensor
    """Integer network times t_k. They stay integers: bf16 would turn 999 into 1000."""
    alpha_bar: Tensor
    """Cumulative product of alphas at t_k."""
    A: Tensor
    """Weight of the state in the mean."""
    B: Tensor
    """Weight of the noise prediction in the mean."""
    sigma: Tensor
    """Standard deviation of the step."""
    clamped: tuple[int, ...]
    """Steps where eta was too large for the schedule and sigma was lowered to sqrt(1 - alpha_bar')."""
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

    def mean(self, k: Index, x: Tensor, epsilon: Tensor) -> Tensor:
        """mu_k(x, eps) = A_k x + B_k eps, shape of x (B, ...)."""
        return at(self.A, k, x) * x + at(self.B, k, x) * epsilon

    def step(self, k: Index, x: Tensor, epsilon: Tensor, noise: Tensor) -> Tensor:
        """x_{k+1} from x_k, the noise prediction and standard normal noise, all (B, ...)."""
        return self.mean(k, x, epsilon) + at(self.sigma, k, x) * noise

    def epsilon(self, output: Tensor, k: Index, x: Tensor) -> Tensor:
        """The network's output as a noise prediction (an affine map, so it commutes with guidance)."""
        if self.prediction_type == "epsilon":
            return output
        root, root_noise = at(self.alpha_bar, k, x).sqrt(), (1 - at(self.alpha_bar, k, x)).sqrt()
        if self.prediction_type == "v_prediction":
            return root * output + root_noise * x
        return (x - root * output) / root_noise

    def original(self, output: Tensor, k: Index, x: Tensor) -> Tensor:
        """The network's output as a prediction of x_0, shape of x; infinite for a noise prediction at alpha_bar = 0."""
        if self.prediction_type == "sample":
            return output
        root, root_noise = at(self.alpha_bar, k, x).sqrt(), (1 - at(self.alpha_bar, k, x)).sqrt()
        if self.prediction_type == "v_prediction":
            return root * x - root_noise * output
        return (x - root_noise * output) / root

    def initial_correlation(self) -> float:
        """Signal-to-noise ratio alpha_bar_0 / (1 - alpha_bar_0) of the first state, per unit of data variance."""
        first = float(self.alpha_bar[0])
        return first / (1 - first)


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
        alpha_bar=now,
        A=(after / now).sqrt(),
        B=direction - (after * (1 - now) / now).sqrt(),
        sigma=sigma,
        clamped=clamped,
        prediction_type=cast(PredictionType, prediction_type),
    )


def at(table: Tensor, k: Index, like: Tensor) -> Tensor:
    """`table[k]` in the dtype and on the device of `like` (B, ...), shaped to broadcast over it."""
    values = table[k].to(device=like.device, dtype=like.dtype)
    return values.reshape(-1, *[1] * (like.ndim - 1)) if values.ndim else values
