"""Training stage 3 of the UNet model: the noise predictor together with the text encoder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from embedded.networks import SCALING_FACTOR, build_scheduler, build_tokenizer, build_unet_networks, tokenize
from embedded.student import CaptionTable, Student, fit


def draw_timesteps(count: int, generator: torch.Generator) -> Tensor:
    """Half uniform on 0..999, half around 450, where the caption decides the image; (B,) int64."""
    uniform = torch.rand(count, generator=generator)
    middle = (torch.randn(count, generator=generator) - 0.2).sigmoid()
    chosen = torch.where(torch.rand(count, generator=generator) < 0.5, uniform, middle)
    return (1000 * chosen).long().clamp(0, 999)


class NoiseLoss:
    """Mean squared error of the noise ε at √ā x + √(1 - ā) ε."""

    def __init__(self, student: Student, latents: Tensor, labels: Tensor, batch: int, device: str) -> None:
        self.student, self.latents, self.labels, self.batch, self.device = student, latents, labels, batch, device
        self.table, self.levels = CaptionTable(), build_scheduler().alphas_cumprod
        self.ids = tokenize(build_tokenizer(), self.table.captions)

    def __call__(self, generator: torch.Generator) -> Tensor:
        """Loss of one batch, drawn from the generator."""
        chosen = torch.randint(len(self.latents), (self.batch,), generator=generator)
        clean = self.latents[chosen]
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = draw_timesteps(self.batch, generator)
        level = self.levels[timesteps].view(-1, 1, 1, 1)
        noisy = level.sqrt() * clean + (1 - level).sqrt() * noise
        ids = self.ids[self.table.draw(self.labels[chosen], generator)]
        hidden = self.student.networks["text_encoder"](ids.to(self.device)).last_hidden_state
        predicted = self.student.networks["unet"](noisy.to(self.device), timesteps.to(self.device), hidden).sample
        return (predicted - noise.to(self.device)).square().mean()


def train_unet(
    latents_path: Path, state_path: Path, *, steps: int, batch: int, seed: int, device: str,
    peak: float, every: int, snapshot: Callable[[Student, int], None],
) -> dict[str, Any]:  # fmt: skip
    """Train for `steps` updates on the cached latents; see `student.fit` for resumption."""
    torch.manual_seed(seed)
    data = load_file(latents_path)
    student = Student.fresh({name: network.to(device) for name, network in build_unet_networks().items()})
    loss = NoiseLoss(student, data["latents"].float() * SCALING_FACTOR, data["labels"], batch, device)
    return fit(student, loss, state_path, steps=steps, seed=seed, peak=peak, every=every, snapshot=snapshot)
