"""What a model's own files say of a recipe, without loading a weight: for plans, `amsd recipe check` and sweeps."""

from __future__ import annotations

from pathlib import Path

import torch

from amsd.diffusion.blueprint import Blueprint, at_hand, blueprint
from amsd.diffusion.families.single_file import stored_shapes
from amsd.diffusion.folder import Part, network_part
from amsd.diffusion.loading import named_as, other_model
from amsd.diffusion.lora_forms import read_lora
from amsd.diffusion.lora_layers import adapted_layers
from amsd.diffusion.start_weights import (
    FromCheckpoint,
    FromLora,
    FromPipeline,
    find_start,
    named,
    require_lora,
    require_start,
)
from amsd.diffusion.weights import require_finite_weights
from amsd.errors import UsageError
from amsd.experiment.inputs import Inputs
from amsd.experiment.setup import require_samplers
from amsd.prompts.cut import cut_prompts
from amsd.reading import require_same
from amsd.recipe import Model, Recipe
from amsd.training.methods import trainer_of


def _require_start(model: Model, found: Blueprint) -> None:
    """Check what `model.start` names, where it is on this machine.

    Raises:
        UsageError: it is nothing to begin from, or a denoiser or a LoRA of another architecture, or damaged.
    """
    if model.start is None or not Path(model.start).expanduser().exists():
        return
    require_start(model)
    what, denoiser = named(model), found.family.denoiser_name
    match find_start(model, denoiser):
        case FromPipeline(name):
            _require_pipeline(found, other_model(model, name), what)
        case FromLora(file):
            _require_lora(model, found, file, what)
        case FromCheckpoint(path) if model.parameterization == "full":
            _require_denoiser(found, network_part(path / denoiser, what), what)


def _require_pipeline(found: Blueprint, model: Model, what: str) -> None:
    """Check another pipeline's network against the base's."""
    with named_as(model.pretrained, what):
        other = blueprint(model)
        require_finite_weights(other.weights, what)
    require_same(found.family.denoiser.state_dict(), other.family.denoiser.state_dict(), what)


def _require_denoiser(found: Blueprint, part: Part, what: str) -> None:
    """Check a checkpoint's network against the base's."""
    own = {name: value.shape for name, value in found.family.denoiser.state_dict().items()}
    stored = {name: shape for file in part.weights for name, shape in stored_shapes(file, what).items()}
    state, other = ({name: torch.empty(shape, device="meta") for name, shape in each.items()} for each in (own, stored))
    require_same(state, other, f"{what}: {part.folder}")
    require_finite_weights(part.weights, what)


def _require_lora(model: Model, found: Blueprint, file: Path, what: str) -> None:
    """Check a LoRA's layers, and its rank and alpha where they are to be the recipe's."""
    lora = read_lora(found.family, file, what)
    require_lora(found.family, lora, file, model, what)
    if model.parameterization != "lora":
        return
    layers = set(lora.layers[found.family.denoiser_name])
    own = set(adapted_layers(found.family.denoiser, model.lora.targets))
    if layers != own:
        one = sorted(layers ^ own)[0]
        raise UsageError(
            f"{what}: {file} has {len(layers)} layers, and the recipe's model.lora.targets name {len(own)} (the first "
            f"that only one of the two has: {one}). Set model.lora.targets to the layers of the file."
        )


def examine(recipe: Recipe, inputs: Inputs, found: Blueprint | None = None) -> list[str]:
    """Notices about a recipe's model, scheduler and prompts; nothing where the model's files are not on this machine.

    Args:
        recipe: the recipe.
        inputs: its prompts.
        found: the model's blueprint, if it is known already.

    Raises:
        UsageError: training would refuse the model, its scheduler, or a key that means nothing to it.
    """
    if found is None:
        if not at_hand(recipe.model):
            return []
        found = blueprint(recipe.model)
    if not found.has_files:
        found.family.check_recipe(recipe)
        return []  # its scheduler is not known either
    require_samplers(found.family, recipe, recipe.evaluation.every > 0)
    require_finite_weights(found.weights, f"model.pretrained = {recipe.model.pretrained!r}")
    _require_start(recipe.model, found)
    named = {}
    if inputs.training is not None:
        named["training"] = inputs.training.texts
    if inputs.held_out is not None and recipe.evaluation.every:
        named["evaluation"] = inputs.held_out.texts[: recipe.evaluation.prompts]
    return [*_of_the_sampler(recipe, found), *cut_prompts(found.family, recipe, named)]


def _of_the_sampler(recipe: Recipe, found: Blueprint) -> list[str]:
    """What the method says of its sampler before a run begins."""
    return [notice.text for notice in trainer_of(recipe.method).warnings(recipe, found.family.steps(recipe.schedule))]
