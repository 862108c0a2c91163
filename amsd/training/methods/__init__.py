"""The methods that ship with amsd, one file each; their rows stand in `amsd.recipe.methods`."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from amsd.errors import UsageError
from amsd.plugins import fault_of
from amsd.recipe import MethodSection

if TYPE_CHECKING:
    from amsd.training.trainer import SOCTrainer


def trainer_of(method: MethodSection) -> type[SOCTrainer[Any]]:
    """The trainer class that a method's section names.

    Raises:
        UsageError: there is none under this name, or it lacks something.
    """
    from amsd.training.trainer import SOCTrainer

    who = f"method {method.name!r}: its trainer {method.trainer!r}"
    try:
        found: type[SOCTrainer[Any]] = resolve_name(method.trainer)
    except Exception as error:  # somebody else's code
        raise UsageError(f"{who} cannot be imported ({type(error).__name__}: {error}).") from error
    fault = fault_of(found, SOCTrainer, ["experience_class"])
    if fault:
        raise UsageError(f"{who} {fault}.")
    return found
