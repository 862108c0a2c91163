"""How evaluation images are made: common noise, the pipeline's own call, the sampler of a setting."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from amsd.diffusion.families.base import Family
from amsd.diffusion.finite import require_finite_images
from amsd.diffusion.noise import generator
from amsd.diffusion.texts import ReadPrompts
from amsd.errors import UsageError
from amsd.evaluation.metrics import quantize
from amsd.recipe import EvaluationSetting, Schedule

PROTOCOL_VERSION = 1
"""Raised whenever the same weights and settings would give other images or other numbers."""

Index = tuple[int, int]
"""(prompt index, sample index) of an image."""


@dataclass(frozen=True)
class Sampler:
    """The scheduler of one evaluation setting."""

    setting: EvaluationSetting
    scheduler: Any
    fallback: str | None = None
    """Why this is not quite the scheduler that was asked for."""

    @property
    def description(self) -> dict[str, Any]:
        """Class and configuration of the scheduler as plain data: part of a result's identity."""
        config = {key: _plain(value) for key, value in self.scheduler.config.items() if not key.startswith("_")}
        return {"class": type(self.scheduler).__name__, **dict(sorted(config.items()))}


def sampler_for(setting: EvaluationSetting, family: Family, schedule: Schedule) -> Sampler:
    """The sampler of a setting: `fine-tuning` follows the recipe's schedule, `default` is the model's own scheduler.

    An own scheduler without noise cannot sample with eta > 0: another takes its place, and `fallback` says so.

    Raises:
        UsageError: the guidance scale lies below 1 and is not 1, which diffusers' pipelines sample without guidance; or
            there are more steps than the model has.
    """
    if setting.guidance_scale < 1:
        raise UsageError(
            f"evaluation.guidance_scale = {setting.guidance_scale:g}: diffusers' pipelines ignore scales below 1, so "
            "the result would carry a wrong label. Use 1 (no guidance) or more."
        )
    family.check_step_count(setting.num_inference_steps)
    if setting.scheduler == "fine-tuning":
        own = family.training_sampler(schedule)
        family.check_step_count(setting.num_inference_steps, own)
        return Sampler(setting, own)
    family.check_drawing(setting.eta, setting.guidance_scale, setting.num_inference_steps)
    scheduler, reason = family.own_sampler(setting.eta)
    return Sampler(setting, scheduler, None if reason is None else f"{setting.name}: {reason}")


def batches(prompts: int, samples: int, size: int) -> list[list[Index]]:
    """Every (prompt, sample) in order, cut into batches: the same batches at any number of processes."""
    order = [(prompt, sample) for prompt in range(prompts) for sample in range(samples)]
    return [order[start : start + size] for start in range(0, len(order), size)]


def noise_generator(seed: int, index: Index) -> torch.Generator:
    """All noise of one image, the same for every checkpoint, batch size and process."""
    return generator("evaluation", seed, *index)


@torch.no_grad()
def generate(
    family: Family, sampler: Sampler, read: ReadPrompts, batch: Sequence[Index], seed: int, prompts: Sequence[str]
) -> Tensor:
    """Pictures (B, 3, H, W), uint8 on the CPU, through the pipeline's own `__call__`.

    `prompts` has one text per image, which `read` encodes: an embedding does not depend on its neighbors in a batch.
    The initial noise is drawn and the latents are decoded in float32, whatever the networks' precision. The pipeline
    must hold the sampler's scheduler (`sampling`).

    Raises:
        Diverged: an image is not finite; its prompt is named.
    """
    generators, conditions = [noise_generator(seed, index) for index in batch], read(prompts)
    latents = family.draw(
        family.prompt_arguments(conditions.prompt, conditions.negative),
        generators,
        eta=sampler.setting.eta,
        guidance_scale=sampler.setting.guidance_scale,
        num_inference_steps=sampler.setting.num_inference_steps,
        output_type="latent",
        latents=family.initial_noise(generators).to(family.device),
    )
    images = family.decode(latents)
    require_finite_images(images, prompts)
    return quantize(images).cpu()


@contextmanager
def sampling(pipeline: Any, sampler: Sampler) -> Iterator[None]:
    """Put the sampler's scheduler into the pipeline and its networks into evaluation mode; restore both afterwards."""
    scheduler = pipeline.scheduler
    networks = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    training = [module for network in networks for module in network.modules() if module.training]
    pipeline.scheduler = sampler.scheduler
    try:
        for module in training:
            module.training = False
        yield
    finally:
        pipeline.scheduler = scheduler
        for module in training:
            module.training = True


def _plain(value: Any) -> Any:
    """Configuration values as JSON has them (`trained_betas` may be an array, `lambda_min_clipped` be infinite)."""
    if isinstance(value, float) and math.isinf(value):
        return str(value)
    return value.tolist() if isinstance(value, Tensor) or type(value).__module__ == "numpy" else value
