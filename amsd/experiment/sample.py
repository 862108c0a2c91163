"""`amsd sample`: pictures from a checkpoint, from the base model, or from anybody's model."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amsd.diffusion.families.base import Family
from amsd.diffusion.finite import require_finite_images
from amsd.errors import UsageError
from amsd.evaluation.pictures import save_image
from amsd.experiment.models import load_model
from amsd.experiment.setup import build_accelerator, load_policy
from amsd.prompts.cut import cut_prompts
from amsd.recipe import Recipe
from amsd.run_directory import resolve_checkpoint
from amsd.tracking.progress import Report, silent
from amsd.training.chunks import PICTURES, ChunkSize, in_chunks

_LOG = logging.getLogger(__name__)


MOST_PICTURES = 100_000
"""Of one prompt; more are another call with another seed."""
LARGEST_SEED = 2**63 - 1
_TOGETHER = 8
"""Pictures that are drawn at once."""


def _require_between(name: str, value: float | None, least: float, most: float) -> None:
    """Infinity is allowed nowhere, not even where there is no upper limit.

    Raises:
        UsageError: the value is outside.
    """
    if value is None or (math.isfinite(value) and least <= value <= most):
        return
    limit = f"from {least:g} on" if math.isinf(most) else f"from {least:g} to {most:,}"
    raise UsageError(f"{name} = {value}: must be a number {limit}.")


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

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn.

        Raises:
            UsageError: names the setting, its value and what is allowed.
        """
        given: object = self.prompts
        if not given or isinstance(given, str):
            raise UsageError(f"prompts = {self.prompts!r}: give a tuple of at least one text.")
        _require_between("count", self.count, 1, MOST_PICTURES)
        _require_between("seed", self.seed, 0, LARGEST_SEED - self.count)
        _require_between("eta", self.eta, 0.0, math.inf)
        _require_between("guidance_scale", self.guidance_scale, 0.0, math.inf)
        _require_between("num_inference_steps", self.num_inference_steps, 1, LARGEST_SEED)


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
    written, size = [], ChunkSize(_TOGETHER, _TOGETHER, PICTURES)
    for index, prompt in enumerate(request.prompts):
        for number, image in enumerate(_in_parts(family, recipe, prompt, request, size)):
            path = out / f"p{index:03d}-s{number}.png"
            save_image(image, path)
            written.append(path)
        report("pictures", len(written), len(request.prompts) * request.count)
    return written


def _in_parts(family: Family, recipe: Recipe, prompt: str, request: SampleRequest, size: ChunkSize) -> Iterator[Any]:
    """The images of one prompt, a few at once, whatever their number."""
    for start in range(0, request.count, _TOGETHER):
        part = replace(request, seed=request.seed + start, count=min(_TOGETHER, request.count - start))
        yield from pictures(family, recipe, prompt, part, size)


def pictures(
    family: Family, recipe: Recipe, prompt: str, request: SampleRequest, size: ChunkSize | None = None
) -> list[Any]:
    """Images of one prompt by the weights and the scheduler that the pipeline holds now.

    All at once, or fewer where they do not fit into memory; `size` keeps what was learned of that. Noise is drawn and
    latents are decoded in float32, whatever the networks' precision: a plain pipeline's call has one dtype for all.

    Raises:
        UsageError: the sampler cannot do what is asked.
        RunError: a picture is not finite.
    """
    scale = recipe.guidance.guidance_scale if request.guidance_scale is None else request.guidance_scale
    own = recipe.guidance.negative_prompt if scale != 1 else ""  # without guidance nothing leads away from it
    negative = own if request.negative_prompt is None else request.negative_prompt
    family.check_negative_prompt(negative, scale)
    steps = request.num_inference_steps or recipe.schedule.num_inference_steps
    family.check_drawing(request.eta, scale, steps)

    @torch.no_grad()
    def draw(numbers: Sequence[int]) -> Tensor:
        generators = [torch.Generator().manual_seed(request.seed + number) for number in numbers]
        latents: Tensor = family.draw(
            family.drawing_arguments(prompt, negative, len(numbers)),
            generators,
            eta=request.eta,
            guidance_scale=scale,
            num_inference_steps=steps,
            output_type="latent",
            latents=family.initial_noise(generators).to(family.device),
        )
        return family.decode(latents).clamp(0, 1)

    size = size or ChunkSize(request.count, request.count, PICTURES)
    images = torch.cat(in_chunks(range(request.count), size, draw))
    require_finite_images(images, [prompt] * len(images))
    processor = family.pipeline.image_processor
    drawn: list[Any] = processor.numpy_to_pil(processor.pt_to_numpy(images))
    return drawn
