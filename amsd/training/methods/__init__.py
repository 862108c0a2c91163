"""The methods that ship with amsd, one file each; their rows stand in `amsd.recipe.methods`."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from amsd.errors import UsageError
from amsd.recipe import MethodSection

if TYPE_CHECKING:
    from amsd.training.trainer import SOCTrainer


def trainer_of(method: MethodSection) -> type[SOCTrainer[Any]]:
    """The trainer class that a method's section names.

    Raises:
        UsageError: there is none under this name.
    """
    try:
        found: type[SOCTrainer[Any]] = resolve_name(method.trainer)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"method {method.name!r}: its trainer {method.trainer!r} cannot be imported: {error}"
        ) from error
    return found
