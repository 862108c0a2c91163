"""What a model's own files say of a recipe, without loading a weight: for plans, `amsd recipe check` and sweeps."""

from __future__ import annotations

from amsd.diffusion.blueprint import Blueprint, at_hand, blueprint
from amsd.experiment.inputs import Inputs
from amsd.experiment.setup import require_samplers
from amsd.prompts.cut import cut_prompts
from amsd.recipe import Recipe


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
    named = {}
    if inputs.training is not None:
        named["training"] = inputs.training.texts
    if inputs.held_out is not None and recipe.evaluation.every:
        named["evaluation"] = inputs.held_out.texts[: recipe.evaluation.prompts]
    return list(cut_prompts(found.family, recipe, named))
