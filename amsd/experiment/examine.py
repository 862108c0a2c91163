"""What a model's own files say of a recipe, without loading a weight: for plans, `amsd recipe check` and sweeps."""

from __future__ import annotations

from pathlib import Path

from amsd.diffusion.blueprint import Blueprint, at_hand, blueprint
from amsd.diffusion.loading import named_as, other_model
from amsd.diffusion.lora_forms import require_places
from amsd.diffusion.lora_input import find_lora
from amsd.diffusion.start_weights import checkpoint_of, impossible, require_start, text_too
from amsd.errors import UsageError
from amsd.experiment.inputs import Inputs
from amsd.experiment.setup import require_samplers
from amsd.prompts.cut import cut_prompts
from amsd.reading import require_same
from amsd.recipe import Model, Recipe


def _require_start(model: Model, found: Blueprint) -> None:
    """Check what `model.start` names, where it is on this machine.

    Raises:
        UsageError: it is nothing to begin from, or a denoiser or a LoRA of another architecture.
    """
    if model.start is None or not Path(model.start).expanduser().exists():
        return
    require_start(model)
    what = f"model.start = {model.start!r}"
    if checkpoint_of(model.start):
        return
    file = find_lora(model.start, what)
    if model.parameterization == "offset" or (file is None and model.parameterization != "full"):
        raise UsageError(impossible(model, what))
    if file is not None:
        if require_places(found.family, file, what):
            raise UsageError(text_too(file, what))
        return
    with named_as(model.start, what):
        state = blueprint(other_model(model, model.start)).family.denoiser.state_dict()
    require_same(found.family.denoiser.state_dict(), state, what)


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
        return []
    require_samplers(found.family, recipe, recipe.evaluation.every > 0)
    _require_start(recipe.model, found)
    named = {}
    if inputs.training is not None:
        named["training"] = inputs.training.texts
    if inputs.held_out is not None and recipe.evaluation.every:
        named["evaluation"] = inputs.held_out.texts[: recipe.evaluation.prompts]
    return list(cut_prompts(found.family, recipe, named))
