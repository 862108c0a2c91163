"""`amsd sample`: pictures from a checkpoint, from the base model, or from anybody's model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from amsd.diffusion.families.base import Family
from amsd.diffusion.finite import require_finite_images
from amsd.experiment.models import load_model
from amsd.experiment.setup import build_accelerator, load_policy
from amsd.files import writing
from amsd.prompts.cut import cut_prompts
from amsd.recipe import Recipe
from amsd.run_directory import resolve_checkpoint
from amsd.tracking.progress import Report, silent

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class SampleRequest:
    """What to draw; unset settings are the recipe's."""

    prompts: Sequence[str]
    count: int = 1
    """Images per prompt."""
    seed: int = 0
    """Image j of a prompt starts from `torch.Generator().manual_seed(seed + j)`, as with plain diffusers."""
    eta: float = 0.0
    guidance_scale: float | None = None
    num_inference_steps: int | None = None
    negative_prompt: str | None = None


def sample(
    recipe: Recipe,
    checkpoint: Path | str | None,
    request: SampleRequest,
    out: Path | str,
    model: str | None = None,
    report: Report = silent,
) -> list[Path]:
    """Write `pPPP-sS.png` for every prompt and image; their paths.

    Args:
        recipe: gives the base model, the steps and what `request` leaves open.
        checkpoint: its folder, or a run's (its best one); unset: the base model draws, or anybody's `model`.
        request: what to draw.
        out: folder for the pictures.
        model: a diffusers folder, a single file, a LoRA file or a hub id.
        report: told how far it is.

    Raises:
        UsageError: there is no such checkpoint or model, or the sampler cannot do what is asked.
        RunError: a picture is not finite.
    """
    report("loading the model", 0, 0)
    device = build_accelerator(recipe).device
    if model is not None:
        loaded = load_model(model, recipe.model, device)
        loaded.family.check_schedule(recipe.schedule)
        with loaded.drawing():
            return _write(loaded.family, recipe, request, Path(out), report)
    policy = load_policy(recipe, device, None if checkpoint is None else resolve_checkpoint(checkpoint))
    with policy.sampling(base=checkpoint is None):
        return _write(policy.family, recipe, request, Path(out), report)


def _write(family: Family, recipe: Recipe, request: SampleRequest, out: Path, report: Report) -> list[Path]:
    for remark in cut_prompts(family, recipe, {"given": request.prompts}):
        _LOG.warning("%s", remark)
    family.pipeline.scheduler = family.exported_sampler(recipe.schedule)
    written = []
    for index, prompt in enumerate(request.prompts):
        for number, image in enumerate(pictures(family, recipe, prompt, request)):
            path = out / f"p{index:03d}-s{number}.png"
            with writing(path):
                out.mkdir(parents=True, exist_ok=True)
                image.save(path)
            written.append(path)
        report("pictures", len(written), len(request.prompts) * request.count)
    return written


def pictures(family: Family, recipe: Recipe, prompt: str, request: SampleRequest) -> list[Any]:
    """Images of one prompt by the weights and the scheduler that the pipeline holds now.

    Raises:
        UsageError: the sampler cannot do what is asked.
        RunError: a picture is not finite.
    """
    scale = recipe.guidance.guidance_scale if request.guidance_scale is None else request.guidance_scale
    negative = recipe.guidance.negative_prompt if request.negative_prompt is None else request.negative_prompt
    family.check_negative_prompt(negative, scale)
    steps = request.num_inference_steps or recipe.schedule.num_inference_steps
    family.check_drawing(request.eta, scale, steps)
    images = family.draw(
        family.drawing_arguments(prompt, negative, request.count),
        [torch.Generator().manual_seed(request.seed + number) for number in range(request.count)],
        eta=request.eta,
        guidance_scale=scale,
        num_inference_steps=steps,
        output_type="pt",
    )
    require_finite_images(images, [prompt] * len(images))
    processor = family.pipeline.image_processor
    drawn: list[Any] = processor.numpy_to_pil(processor.pt_to_numpy(images))
    return drawn
