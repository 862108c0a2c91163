"""What a `CHECKPOINT|base` argument and `--recipe` mean together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from amsd.recipe import Recipe


@dataclass(frozen=True)
class Source:
    """A checkpoint, or the base model where `checkpoint` is None, and the recipe it is used with."""

    recipe: Recipe
    checkpoint: Path | None


def resolve(source: str, recipe: str | None, assignments: Sequence[str]) -> Source:
    """Find the checkpoint and its recipe.

    Raises:
        UsageError: either is absent or wrong.
    """
    from amsd.recipe import load_recipe
    from amsd.run_directory import recipe_of, resolve_checkpoint

    if source == "base":
        return Source(load_recipe(recipe or "shapes", assignments), None)
    checkpoint = resolve_checkpoint(Path(source))
    return Source(load_recipe(recipe or recipe_of(checkpoint), assignments), checkpoint)
