"""What a training run costs, before it runs (docs/method.md section 7); each method counts its own network calls."""

from __future__ import annotations

from amsd.recipe.methods.base import Cost
from amsd.recipe.tree import Recipe


def cost_per_trajectory(recipe: Recipe, processes: int = 1) -> Cost:
    """Expected cost of one trajectory in one optimizer step."""
    return recipe.method.cost(recipe, processes)


def forwards_per_step(recipe: Recipe, processes: int = 1) -> float:
    """Network forward-equivalents of one optimizer step, over all processes."""
    return recipe.optimizer.prompts_per_step * cost_per_trajectory(recipe, processes).total


def training_cost(recipe: Recipe, processes: int = 1) -> float:
    """Network forward-equivalents of a whole training, without evaluation and validation."""
    return recipe.training.steps * forwards_per_step(recipe, processes)
