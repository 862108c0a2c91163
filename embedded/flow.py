"""Training of the flow-matching model: velocity predictor and text encoders on the latents of captioned shapes."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from embedded.flow_networks import (
    LATENT_SIZE,
    TEXT_LENGTH,
    CountedPadding,
    build_flow_tokenizer,
    build_networks,
    draw_counts,
    encode,
)
from embedded.networks import tokenize
from embedded.student import CaptionTable, Student, fit

log = logging.getLogger(__name__)

TRAINING_SHIFT = 3.0


def draw_times(count: int, generator: torch.Generator) -> Tensor:
    """Noise levels s (B,) in (0, 1), most of them high.

    The first steps decide where an object is; a velocity that is not learned well there jumps. 35% are uniform, 35%
    uniform on the grid of shift 3, 30% logit-normal.
    """
    uniform = torch.rand(count, generator=generator)
    shifted = TRAINING_SHIFT * uniform / (1 + (TRAINING_SHIFT - 1) * uniform)
    middle = (torch.randn(count, generator=generator) + 0.3).sigmoid()
    choice = torch.rand(count, generator=generator)
    return torch.where(choice < 0.35, uniform, torch.where(choice < 0.7, shifted, middle))


class VelocityLoss:
    """Mean squared error of the velocity ε - x at x_s = (1 - s) x + s ε (docs/method.md, flow-matching models)."""

    def __init__(self, student: Student, latents: Tensor, labels: Tensor, batch: int, device: str) -> None:
        self.student, self.latents, self.labels, self.batch, self.device = student, latents, labels, batch, device
        self.table = CaptionTable()
        self.ids = tokenize(build_flow_tokenizer(), self.table.captions)
        self.padding = CountedPadding()
        student.networks["transformer"].set_attn_processor(self.padding)

    def __call__(self, generator: torch.Generator) -> Tensor:
        """Loss of one batch, drawn from the generator."""
        chosen = torch.randint(len(self.latents), (self.batch,), generator=generator)
        clean = self.latents[chosen]
        noise = torch.randn(clean.shape, generator=generator)
        times = draw_times(self.batch, generator)
        level = times.view(-1, 1, 1, 1)
        noisy = (1 - level) * clean + level * noise
        ids = self.ids[self.table.draw(self.labels[chosen], generator)].to(self.device)
        counts = draw_counts(self.batch, generator).to(self.device)
        context, pooled = encode(self.student.networks, ids)
        context = torch.cat([context, context.new_zeros(self.batch, 1, context.shape[-1])], dim=1)
        self.padding.set_counts(counts, (LATENT_SIZE // 2) ** 2 + TEXT_LENGTH + 1)
        predicted = self.student.networks["transformer"](
            noisy.to(self.device), context, pooled, 1000 * times.to(self.device)
        ).sample
        return (predicted - (noise - clean).to(self.device)).square().mean()


def train_flow(
    latents_path: Path, state_path: Path, *, steps: int, batch: int, seed: int, device: str,
    peak: float, every: int, snapshot: Callable[[Student, int], None],
) -> dict[str, Any]:  # fmt: skip
    """Train for `steps` updates on the cached latents (unit variance); see `student.fit` for resumption."""
    torch.manual_seed(seed)
    data = load_file(latents_path)
    student = Student.fresh({name: network.to(device) for name, network in build_networks().items()})
    loss = VelocityLoss(student, data["latents"].float(), data["labels"], batch, device)
    return fit(student, loss, state_path, steps=steps, seed=seed, peak=peak, every=every, snapshot=snapshot)
