"""The methods that ship with amsd, one file each; their rows stand in `amsd.recipe.methods`."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from amsd.recipe import MethodSection

if TYPE_CHECKING:
    from amsd.training.trainer import SOCTrainer


def trainer_of(method: MethodSection) -> type[SOCTrainer[Any]]:
    """The trainer class that a method's section names."""
    found: type[SOCTrainer[Any]] = resolve_name(method.trainer)
    return found
