"""`SweepPlan`: a sweep and the recipe that it is based on."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from amsd.recipe import Recipe, from_dict
from amsd.recipe.load import as_before, assign
from amsd.sweep.schema import FORMAT, Sweep


@dataclass(frozen=True)
class SweepPlan:
    """A checked sweep with its base recipe; all that a worker needs to know."""

    sweep: Sweep
    tree: Mapping[str, Any]
    """Base recipe with the overrides, as plain data."""
    older: bool = False
    """Whether it was begun before plans had a format: keys that came later mean what they meant then."""

    @cached_property
    def recipe(self) -> Recipe:
        """The base recipe with the overrides."""
        return from_dict(self._meant(self.tree), source=f"base recipe of sweep {self.sweep.name}")

    def resolve(self, settings: Mapping[str, Any]) -> Recipe:
        """The recipe of a point.

        Raises:
            RecipeError: these values do not go together.
        """
        tree = copy.deepcopy(dict(self.tree))
        for key, value in settings.items():
            assign(tree, key, value)
        shown = ", ".join(f"{key} = {value}" for key, value in settings.items())
        return from_dict(self._meant(tree), source=f"sweep {self.sweep.name} at {shown}")

    def _meant(self, tree: Mapping[str, Any]) -> Mapping[str, Any]:
        return as_before(tree) if self.older else tree

    def dump(self) -> dict[str, Any]:
        """As JSON data, for the storage."""
        sweep = self.sweep.model_dump(mode="json", exclude_unset=True)
        version = {} if self.older else {"format": FORMAT}
        return {**version, "sweep": sweep, "recipe": dict(self.tree)}
