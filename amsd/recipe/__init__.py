"""Recipes: one frozen, typed tree describes one run; TOML plus `--set key=value` makes it."""

from amsd.recipe.errors import Problem, RecipeError
from amsd.recipe.identity import identity
from amsd.recipe.load import dump_toml, from_dict, load_recipe, parse_assignment
from amsd.recipe.methods.adjoint_matching import AdjointMatching, BufferedAdjointMatching, Smoothing
from amsd.recipe.methods.base import Buffer, BufferedSection, Cost, MethodSection
from amsd.recipe.schema import (
    Evaluation,
    EvaluationSetting,
    Guidance,
    Lora,
    Model,
    Optimizer,
    Prompts,
    RewardTerm,
    Schedule,
    Training,
)
from amsd.recipe.tracking import Tracking
from amsd.recipe.tree import Recipe

__all__ = [
    "AdjointMatching",
    "Buffer",
    "BufferedAdjointMatching",
    "BufferedSection",
    "Cost",
    "Evaluation",
    "EvaluationSetting",
    "Guidance",
    "Lora",
    "MethodSection",
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
