"""Anybody's model beside a base: a diffusers folder, a single file, a LoRA file or a hub id, drawn as it is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from amsd.diffusion import lora_input
from amsd.diffusion.families.base import Family
from amsd.diffusion.held import compute_in
from amsd.diffusion.loading import load_family, locate, named_as, other_model
from amsd.diffusion.policy import DTYPES
from amsd.errors import UsageError, option
from amsd.evaluation.evaluator import Evaluator
from amsd.evaluation.identity import pipeline_identity
from amsd.evaluation.result import EvaluationResult
from amsd.experiment.results import compare_pictures, evaluator_of, write_results
from amsd.experiment.setup import build_accelerator
from amsd.recipe import Model, Recipe
from amsd.tracking.progress import Report
from amsd.training.processes import rank

#: Folder of evaluations that belong to no run.
FOLDER = "evaluations"


@dataclass(frozen=True)
class LoadedModel:
    """A pipeline on its device, in the recipe's precision."""

    family: Family
    weights: str
    """Identity of everything in it."""
    name: str
    """What the user called it."""

    def require_size(self, size: tuple[int, int]) -> None:
        """Check that its pictures are as large as those that they are paired with, (height, width).

        Raises:
            UsageError: they are not.
        """
        own = self.family.size
        if tuple(own) != tuple(size):
            raise UsageError(
                f"{self.name} draws pictures of {own[0]} x {own[1]} pixels and the other model of "
                f"{size[0]} x {size[1]}, so they cannot be paired. Set model.size for both, or choose another "
                f"{option('base')}, or none."
            )

    @contextmanager
    def drawing(self) -> Iterator[Any]:
        """The pipeline, without gradients."""
        with torch.no_grad():
            yield self.family.pipeline

    def evaluated(self, evaluator: Evaluator, base: Sequence[EvaluationResult] | None = None) -> list[EvaluationResult]:
        """Results, compared with those of a base where given."""
        with self.drawing() as pipeline:
            return evaluator.evaluate(pipeline, self.weights, base)

    @property
    def folder_name(self) -> str:
        """Name that no other weights share."""
        stem = re.sub(r"[^\w.-]+", "-", self.name.rstrip("/").rpartition("/")[2]).strip("-.") or "model"
        return f"{stem}-{self.weights[:8]}"


def load_model(target: str, model: Model, device: torch.device) -> LoadedModel:
    """Load a pipeline, or a LoRA on top of the recipe's model.

    Raises:
        UsageError: nothing is there, it is damaged, or it does not fit the base.
    """
    file = lora_input.find_lora(target, f"the model {target!r}")
    if file is not None:
        family = load_family(model)
        lora_input.merge(family, file, f"the LoRA {target!r} on {model.pretrained!r}")
    else:
        with named_as(target, f"the model {target!r}"):
            family = load_family(other_model(model, target))
    weights = pipeline_identity(family.pipeline)
    family.pipeline.vae.to(torch.float32)
    compute_in(family.denoiser, DTYPES[model.precision])
    for encoder in family.text_encoders:
        encoder.to(DTYPES[model.precision])
    for part in (family.denoiser, family.pipeline.vae, *family.text_encoders):
        part.requires_grad_(False).eval()
    family.pipeline.to(device)
    return LoadedModel(family, weights, target)


def require_model(target: str, model: Model) -> None:
    """Check that a model is there, without loading it.

    Raises:
        UsageError: it is not.
    """
    if lora_input.find_lora(target, f"the model {target!r}") is None:
        with named_as(target, f"the model {target!r}"):
            locate(other_model(model, target))


def evaluate_model(
    recipe: Recipe, target: str, paired: bool, output: Path | None, progress: Report | None = None
) -> tuple[tuple[EvaluationResult, ...], Path]:
    """Evaluate a model under the recipe's settings, `paired` with the recipe's own model on common noise.

    Files and pictures go to `output` (unset: `evaluations/NAME-WEIGHTS/`), those of the base below it.

    Raises:
        UsageError: either cannot be loaded, or the two cannot be compared (another size, for example).
        RunError: an image or a score is not finite.
    """
    device = build_accelerator(recipe).device
    require_model(target, recipe.model)  # not only after the base was evaluated
    model = load_model(recipe.model.pretrained if paired else target, recipe.model, device)
    model.family.check_recipe(recipe)
    evaluator = evaluator_of(recipe, progress)
    base: Sequence[EvaluationResult] | None = None
    if paired:
        base = model.evaluated(evaluator)
        size = model.family.size
        model = load_model(target, recipe.model, device)
        model.require_size(size)
    results = tuple(model.evaluated(evaluator, base))
    folder = output or Path(FOLDER) / model.folder_name
    if rank() == 0:
        write_results(results, folder / "evaluation", folder / "samples")
        write_results(base or (), folder / "evaluation" / "base", folder / "samples" / "base")
        compare_pictures(base or (), results, folder)
    return results, folder
