"""The base of every table of a recipe, and the kinds of numbers in them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


def named(value: str) -> str:
    """A text that names something.

    Raises:
        ValueError: it is empty, as an unset shell variable is.
    """
    if not value.strip():
        raise ValueError("names nothing (is a shell variable unset?); leave the key out to keep its default")
    return value


def count_or(word: str) -> BeforeValidator:
    """Of a whole number from 1 on, or this word."""

    def check(value: Any) -> Any:
        if value == word or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
            return value
        raise ValueError(f'must be "{word}" or a whole number from 1 on')

    return BeforeValidator(check)


def required(value: str) -> str:
    """As `named`, of what has no default.

    Raises:
        ValueError: it is empty.
    """
    if not value.strip():
        raise ValueError("names nothing (is a shell variable unset?)")
    return value


RequiredName = Annotated[str, AfterValidator(required)]
"""A name without a default, or the name of a key."""
Name = Annotated[str, AfterValidator(named)]
"""What names a file, a model or a scorer: an empty text would be the current folder, or nothing."""
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """One table of the TOML file."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
