"""Training stage 3: the noise predictor together with the text encoder."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from amsd.shapes.captions import COLOURS, FORMS, NOTHING, SHAPES, Attributes
from amsd.shapes.networks import (
    SCALING_FACTOR,
    build_scheduler,
    build_text_encoder,
    build_tokenizer,
    build_unet,
    tokenize,
)

log = logging.getLogger(__name__)

CAPTION_DROPOUT = 0.15
WORD_DROPOUT = (0.15, 0.1, 0.15)
"""Chance that a caption leaves colour, shape or size open: words learnt on their own combine in new ways."""
EMA_DECAY = 0.999


@dataclass
class Student:
    """The two networks in training, with the exponential moving average of their parameters."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    average: list[Tensor]

    @classmethod
    def fresh(cls, device: str) -> "Student":
        """Untrained networks; the average starts at their values."""
        tokenizer = build_tokenizer()
        text_encoder, unet = build_text_encoder(tokenizer).to(device), build_unet().to(device)
        student = cls(tokenizer, text_encoder, unet, [])
        student.average = [parameter.detach().clone() for parameter in student.parameters()]
        return student

    def parameters(self) -> list[Tensor]:
        """Parameters of both networks, in one fixed order."""
        return [*self.unet.parameters(), *self.text_encoder.parameters()]

    @torch.no_grad()
    def update_average(self, step: int) -> None:
        """One step of the moving average, with a warm-up that forgets the first steps."""
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.average, [parameter.detach() for parameter in self.parameters()], 1 - decay)

    @torch.no_grad()
    def averaged(self, device: str = "cpu") -> "Student":
        """A copy that carries the averaged parameters."""
        copy = Student.fresh(device)
        for target, value in zip(copy.parameters(), self.average, strict=True):
            target.copy_(value)
        return copy


class CaptionTable:
    """Token ids of every caption, complete or with words left out; row -1 is the empty caption."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        colours, shapes = [*COLOURS, None], [*SHAPES, None]
        forms = [*((form,) for form in FORMS), FORMS[:2]]
        rows = [Attributes(colour, shape, form) for colour in colours for shape in shapes for form in forms]
        self.captions = [attributes.caption() for attributes in [*rows, NOTHING]]
        self.ids = tokenize(tokenizer, self.captions)

    def draw(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Rows (B,) of captions for labels (B, 3), words and whole captions left out at random."""
        chance = torch.rand(labels.shape[0], 4, generator=generator)
        colour, shape, form = labels.unbind(1)
        colour = torch.where(chance[:, 0] < WORD_DROPOUT[0], len(COLOURS), colour)
        shape = torch.where(chance[:, 1] < WORD_DROPOUT[1], len(SHAPES), shape)
        single = form != FORMS.index("two")
        form = torch.where((chance[:, 2] < WORD_DROPOUT[2]) & single, len(FORMS), form)
        rows = (colour * (len(SHAPES) + 1) + shape) * (len(FORMS) + 1) + form
        return torch.where(chance[:, 3] < CAPTION_DROPOUT, len(self.captions) - 1, rows)


def draw_timesteps(count: int, generator: torch.Generator) -> Tensor:
    """Half uniform on 0..999, half around 450, where the caption decides the image; (B,) int64."""
    uniform = torch.rand(count, generator=generator)
    middle = (torch.randn(count, generator=generator) - 0.2).sigmoid()
    chosen = torch.where(torch.rand(count, generator=generator) < 0.5, uniform, middle)
    return (1000 * chosen).long().clamp(0, 999)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Warm-up over 200 steps, constant, cosine to 3% over the last 40%."""
    tail = max(0.0, (step - 0.6 * steps) / (0.4 * steps))
    return peak * min(1.0, step / 200) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * min(tail, 1.0))))


def train_unet(
    latents_path: Path, state_path: Path, *, steps: int, batch: int, seed: int, device: str,
    peak: float, every: int, snapshot: Callable[[Student, int], None],
) -> dict[str, Any]:  # fmt: skip
    """Train for `steps` updates, going on from `state_path` where it exists; `snapshot` is called every `every` steps.

    Each step draws from a generator seeded by (seed, step): a continued run sees the batches of an unbroken one.
    """
    torch.manual_seed(seed)
    data = load_file(latents_path)
    latents, labels = data["latents"].float() * SCALING_FACTOR, data["labels"]
    student = Student.fresh(device)
    optimizer = torch.optim.AdamW(student.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=1e-3)
    start, curve = _restore(state_path, student, optimizer)
    table, levels = CaptionTable(student.tokenizer), build_scheduler().alphas_cumprod
    total, since, clock = 0.0, 0, time.monotonic()
    for step in range(start + 1, steps + 1):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        chosen = torch.randint(len(latents), (batch,), generator=generator)
        clean, noise = latents[chosen], torch.randn(batch, *latents.shape[1:], generator=generator)
        timesteps = draw_timesteps(batch, generator)
        level = levels[timesteps].view(-1, 1, 1, 1)
        noisy = level.sqrt() * clean + (1 - level).sqrt() * noise
        ids = table.ids[table.draw(labels[chosen], generator)]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        hidden = student.text_encoder(ids.to(device)).last_hidden_state
        predicted = student.unet(noisy.to(device), timesteps.to(device), hidden).sample
        loss = (predicted - noise.to(device)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        student.update_average(step)
        total, since = total + loss.item(), since + 1
        if step % 100 == 0 or step == steps:
            curve.append((step, round(total / since, 5)))
            pace = (time.monotonic() - clock) / since
            log.info("unet step %d/%d loss %.5f, %.3f s per step", step, steps, total / since, pace)
            total, since, clock = 0.0, 0, time.monotonic()
        if step % every == 0 or step == steps:
            _save(state_path, student, optimizer, step, curve)
            snapshot(student.averaged(), step)
    return {"curve": curve, "steps": steps}


def _save(
    path: Path, student: Student, optimizer: torch.optim.Optimizer, step: int, curve: list[tuple[int, float]]
) -> None:
    state = {
        "step": step, "curve": curve, "average": student.average, "optimizer": optimizer.state_dict(),
        "unet": student.unet.state_dict(), "text_encoder": student.text_encoder.state_dict(),
    }  # fmt: skip
    aside = path.with_suffix(".new")
    torch.save(state, aside)
    aside.replace(path)


def _restore(path: Path, student: Student, optimizer: torch.optim.Optimizer) -> tuple[int, list[tuple[int, float]]]:
    if not path.exists():
        return 0, []
    state = torch.load(path, weights_only=True, map_location=student.average[0].device)
    student.unet.load_state_dict(state["unet"])
    student.text_encoder.load_state_dict(state["text_encoder"])
    student.average = list(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    log.info("going on from step %d of %s", state["step"], path)
    return int(state["step"]), [tuple(point) for point in state["curve"]]
