"""The base of every table of a recipe, and the kinds of numbers in them."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def named(value: str) -> str:
    """A text that names something.

    Raises:
        ValueError: it is empty, as an unset shell variable is.
    """
    if not value.strip():
        raise ValueError("names nothing (is a shell variable unset?); leave the key out to keep its default")
    return value


Name = Annotated[str, AfterValidator(named)]
"""What names a file, a model or a scorer: an empty text would be the current folder, or nothing."""
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """One table of the TOML file."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
