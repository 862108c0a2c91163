"""Text conditions and the one place that combines the unconditional and the conditional prediction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from amsd.diffusion.steps import AffineSteps, Index
from amsd.rows import Rows, on_device


@dataclass(frozen=True)
class TextCondition(Rows):
    """Encoded prompts of a batch."""

    hidden_states: Tensor
    """Token embeddings (B, L, D)."""
    added: Mapping[str, Tensor] = field(default_factory=dict)
    """Further inputs of the network by name, each (B, ...); SDXL: `text_embeds`, `time_ids`."""

    def __len__(self) -> int:
        return len(self.hidden_states)


@dataclass(frozen=True)
class Conditioning(Rows):
    """What a batch is conditioned on: its prompts, and what stands in their place in guidance and dropout."""

    prompt: TextCondition
    negative: TextCondition
    """The negative prompt; by default the empty one."""

    def __len__(self) -> int:
        return len(self.prompt)

    def dropped(self, mask: Tensor) -> Conditioning:
        """Prompt dropout: rows where `mask` (B,) is true get the negative (by default the empty) prompt.

        Guided or not, such a row is then predicted without a prompt, in every guidance mode.
        """

        def choose(prompt: Tensor, negative: Tensor) -> Tensor:
            return torch.where(on_device(mask, prompt.device).reshape(-1, *[1] * (prompt.ndim - 1)), negative, prompt)

        kept = TextCondition(
            choose(self.prompt.hidden_states, self.negative.hidden_states),
            {name: choose(value, self.negative.added[name]) for name, value in self.prompt.added.items()},
        )
        return Conditioning(kept, self.negative)


Network = Callable[[Tensor, Tensor, TextCondition], Tensor]
"""(x (B, ...), timesteps (B,), condition) -> raw output (B, ...)."""


def guided(network: Network, x: Tensor, timesteps: Tensor, conditioning: Conditioning, guidance_scale: float) -> Tensor:
    """uncond + guidance_scale (cond - uncond), in one call of the network; scale 1 is the conditional output alone.

    Source: Ho and Salimans, "Classifier-Free Diffusion Guidance", eq. 6 in the convention of diffusers.
    """
    if guidance_scale == 1:
        return network(x, timesteps, conditioning.prompt)
    both = TextCondition.cat([conditioning.negative, conditioning.prompt])
    unconditional, conditional = network(torch.cat([x, x]), torch.cat([timesteps, timesteps]), both).chunk(2)
    return unconditional + guidance_scale * (conditional - unconditional)


@dataclass(frozen=True)
class NetworkPredictor:
    """A network under fixed conditions, as the prediction f(x, k) of the affine steps."""

    network: Network
    steps: AffineSteps
    conditioning: Conditioning
    guidance_scale: float = 1.0

    def __call__(self, x: Tensor, k: Index) -> Tensor:
        """The path's own prediction (B, ...) at states x (B, ...) of step k."""
        timesteps = self._timesteps(k, x)
        output = guided(self.network, x, timesteps, self.conditioning, self.guidance_scale)
        return self.steps.prediction(output, k, x)

    def _timesteps(self, k: Index, x: Tensor) -> Tensor:
        """t_k for every row of x, (B,), filled in on the device of x."""
        times = self.steps.timesteps
        if isinstance(k, int):
            return torch.full((len(x),), times[k].item(), dtype=times.dtype, device=x.device)
        return on_device(times[k], x.device)

    def rows(self, index: Tensor | slice) -> NetworkPredictor:
        """The same predictor for the given rows of its batch."""
        return NetworkPredictor(self.network, self.steps, self.conditioning.rows(index), self.guidance_scale)
