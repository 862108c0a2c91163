"""Stable identity of a recipe: what determines the result, and nothing else."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from amsd.recipe.tree import Recipe
from amsd.urls import is_server

#: Keys that change speed, bookkeeping or names, not the trained weights.
_NOT_IDENTITY: dict[str, tuple[str, ...]] = {
    "optimizer": ("micro_batch", "max_skipped_updates"),
    "training": (
        "checkpoint_every", "keep", "gradient_checkpointing", "fsdp", "offload_text_encoders", "compile",
        "background_checkpoints", "collection_batch", "validate_every", "deterministic",
    ),
}  # fmt: skip


#: Keys that came later, at the values that mean what recipes without them meant: older runs keep their identity.
AS_BEFORE: dict[str, dict[str, Any]] = {
    "model": {
        "start": None, "config": None, "vae_tiling": False, "size": None, "t5": True, "max_sequence_length": None,
        "embedded_guidance": None, "prompt_windows": 1, "quantization": None,
    },
    "guidance": {"negative_prompt": ""},
    "schedule": {"shift_terminal": None},
    "optimizer": {"name": "adamw"},
    "prompts": {"column": None},
    "training": {"kl_budget": None, "diversity_budget": None},
}  # fmt: skip


def canonical(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain data, reduced to what determines the trained weights."""
    tree = recipe.model_dump(mode="json", exclude={"tracking", "evaluation", "code", "origin"})
    for section, keys in _NOT_IDENTITY.items():
        for key in keys:
            tree[section].pop(key)
    tree["reward"] = [_as_scored(term) for term in tree["reward"]]
    tree["method"] = recipe.method.fitted(recipe).canonical()  # a size left open, or the same written out: one run
    if recipe.guidance.guidance_scale == 1:
        tree["guidance"]["negative_prompt"] = ""  # nothing leads away from it
    for section, neutral in AS_BEFORE.items():
        for key, value in neutral.items():
            if tree[section][key] == value:
                tree[section].pop(key)
    if recipe.model.parameterization != "lora":
        tree["model"].pop("lora")
    return tree


def _as_scored(term: dict[str, Any]) -> dict[str, Any]:
    """A reward without how its server is talked to."""
    if not is_server(term["name"]):
        return term
    return {**term, "options": {key: value for key, value in term["options"].items() if key not in _MANNERS}}


_MANNERS = ("timeout", "retries", "images_per_call", "token_env")


def as_started(recipe: Recipe, run: Recipe) -> Recipe:
    """`recipe` for going on with a run: keys that came later and that it does not set are as the run has them."""
    for section, keys in [*AS_BEFORE.items(), ("method", recipe.method.as_before)]:
        if type(getattr(recipe, section)) is not type(getattr(run, section)):
            continue  # another method
        wanted, started = getattr(recipe, section), getattr(run, section)
        unset = {key: getattr(started, key) for key in keys if key not in wanted.model_fields_set}
        recipe = recipe.model_copy(update={section: wanted.model_copy(update=unset)})
    return recipe


def identity(recipe: Recipe) -> str:
    """Twelve hexadecimal digits: equal for two recipes exactly if they train the same weights."""
    text = json.dumps(canonical(recipe), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
