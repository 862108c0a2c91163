"""Recipes: one frozen, typed tree describes one run; TOML plus `--set key=value` makes it."""

from amsd.recipe.errors import Problem, RecipeError
from amsd.recipe.identity import identity
from amsd.recipe.load import dump_toml, from_dict, load_recipe, parse_assignment
from amsd.recipe.schema import (
    Buffer,
    Evaluation,
    EvaluationSetting,
    Guidance,
    Lora,
    Method,
    Model,
    Optimizer,
    Prompts,
    Recipe,
    RewardTerm,
    Schedule,
    Smoothing,
    Tracking,
    Training,
)

__all__ = [
    "Buffer",
    "Evaluation",
    "EvaluationSetting",
    "Guidance",
    "Lora",
    "Method",
    "Model",
    "Optimizer",
    "Problem",
    "Prompts",
    "Recipe",
    "RecipeError",
    "RewardTerm",
    "Schedule",
    "Smoothing",
    "Tracking",
    "Training",
    "dump_toml",
    "from_dict",
    "identity",
    "load_recipe",
    "parse_assignment",
]
