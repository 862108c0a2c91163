"""What a model's own files say of a recipe, without loading a weight: for plans, `amsd recipe check` and sweeps."""

from __future__ import annotations

from pathlib import Path

import torch

from amsd.diffusion.blueprint import Blueprint, at_hand, blueprint
from amsd.diffusion.families.single_file import stored_shapes
from amsd.diffusion.folder import Part, network_part
from amsd.diffusion.loading import named_as, other_model
from amsd.diffusion.lora_forms import read_lora
from amsd.diffusion.lora_input import find_lora, lora_file
from amsd.diffusion.lora_layers import adapted_layers
from amsd.diffusion.start_weights import checkpoint_of, impossible, require_lora, require_start
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
    what = f"model.start = {model.start!r}"
    checkpoint = checkpoint_of(model.start)
    file = find_lora(model.start, what) if checkpoint is None else lora_file(checkpoint)
    own = checkpoint and checkpoint / (found.family.denoiser_name if model.parameterization == "full" else "offset")
    if own is not None and model.parameterization != "lora" and own.is_dir():
        if model.parameterization == "full":
            _require_denoiser(found, network_part(own, what), what)
        return
    if model.parameterization == "offset" or (file is None and (model.parameterization != "full" or checkpoint)):
        raise UsageError(impossible(model, what))
    if file is not None:
        _require_lora(model, found, file, what)
        return
    with named_as(model.start, what):
        other = blueprint(other_model(model, model.start))
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
