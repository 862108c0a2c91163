"""A Gaussian base as a pipeline of its own: latents of three independent numbers, an affine network, a known optimum.

The library sees a model family like any other (an `Family` whose pipeline holds a network that diffusers can save), so
its own trainers, policies and checkpoints run on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from amsd.diffusion.families.base import Family
from amsd.diffusion.guidance import Network, TextCondition
from amsd.diffusion.steps import AffineSteps
from amsd.recipe import Schedule
from amsd.rewards.combination import RewardValues
from tests.training.test_closed_form import CENTER, MEAN, Affine, gaussian_slope, steps_of

RANGE = 64.0
"""Latents between -32 and 32 are images between 0 and 1."""


class GaussianNetwork(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """The exact noise prediction of N(0.5, 0.25), plus a control w_k x + b_k that starts at zero."""

    @register_to_config
    def __init__(self, num_steps: int) -> None:
        super().__init__()
        steps = steps_of(num_steps)
        self.w, self.b = (nn.Parameter(torch.zeros(num_steps)) for _ in range(2))
        number = torch.zeros(1000, dtype=torch.long)
        number[steps.timesteps] = torch.arange(num_steps)
        tables = {
            "number": number,
            "slope": gaussian_slope(steps).float(),
            "center": (steps.alpha_bar.sqrt() * MEAN).float(),
            "unit": (1 / steps.control_scale).float(),
        }
        for name, value in tables.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """Noise prediction, shape of x (B, 3, 1, 1)."""
        k = self.number[timesteps]
        slope, center, unit, w, b = (
            table[k].view(-1, 1, 1, 1) for table in (self.slope, self.center, self.unit, self.w, self.b)
        )
        prediction: Tensor = slope * (x - center) + unit * (w * x + b)
        return prediction

    def controls(self) -> Affine:
        """What was learned."""
        return Affine(self.w.detach().double(), self.b.detach().double())


class GaussianFamily(Family):
    """The family of that network: prompts mean nothing, and images are the latents in other units."""

    denoiser_name = "unet"
    output_layers = ()

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps
        network = GaussianNetwork(num_steps)
        super().__init__(SimpleNamespace(unet=network, vae=nn.Identity(), components={}, vae_scale_factor=1))

    @classmethod
    def check_schedule(cls, schedule: Any) -> None:
        """Nothing is asked of it."""

    @classmethod
    def require_fit(cls, configs: Any, what: str) -> None:
        """There is nothing to load."""

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Three numbers."""
        return (3, 1, 1)

    def _default_size(self) -> tuple[int, int]:
        return (1, 1)

    def steps(self, schedule: Schedule) -> AffineSteps:
        """Those that the network was made for."""
        return steps_of(self.num_steps)

    def training_sampler(self, schedule: Schedule) -> Any:
        """There is no pipeline to call."""
        raise NotImplementedError

    exported_sampler = training_sampler

    departures = training_sampler

    def own_sampler(self, eta: float) -> tuple[Any, str | None]:
        """There is no pipeline to call."""
        raise NotImplementedError

    def blank_condition(self, device: str) -> TextCondition:
        """Nothing."""
        return self.encode_empty(1)

    def prompt_arguments(self, prompt: TextCondition, empty: TextCondition) -> dict[str, Any]:
        """There is no pipeline to call."""
        raise NotImplementedError

    def _call(self, prompt: Any, guidance_scale: float) -> dict[str, Any]:
        """There is no pipeline to call."""
        raise NotImplementedError

    def encode(self, prompts: Sequence[str]) -> TextCondition:
        """Nothing, one row each."""
        return self.encode_empty(len(prompts))

    def encode_empty(self, count: int) -> TextCondition:
        """Nothing."""
        return TextCondition(torch.zeros(count, 1, 1))

    def network(self, module: nn.Module) -> Network:
        """The network without its condition."""
        return lambda x, timesteps, condition: module(x, timesteps)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents as images (B, 3, 1, 1)."""
        return latents / RANGE + 0.5


def quadratic(images: Tensor, prompts: Sequence[str]) -> RewardValues:
    """-|x - c|^2 / 2 of the latents x."""
    x = (images - 0.5) * RANGE
    total = -0.5 * (x - CENTER).square().flatten(1).sum(1)
    return RewardValues(total, {"quadratic": total})
