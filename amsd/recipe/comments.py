"""A recipe's TOML with what every key means, from the schema's own descriptions."""

from __future__ import annotations

import re
import textwrap
from typing import Any

from pydantic import BaseModel

from amsd.recipe.load import dump_toml
from amsd.recipe.tree import Recipe

_HEADER = re.compile(r"\[\[?([^\]]+)\]\]?\s*$")
_KEY = re.compile(r"([A-Za-z0-9_-]+) = ")
_WIDTH = 116


def with_comments(recipe: Recipe) -> str:
    """The fully resolved recipe as TOML, each section and key below a comment that says what it means."""
    lines: list[str] = []
    section: BaseModel | None = None
    for line in dump_toml(recipe).splitlines():
        header, key = _HEADER.match(line), _KEY.match(line)
        if header:
            section = _section(recipe, header[1].split("."))
            lines += _comment((type(section).__doc__ or "") if section else "")
        elif key and section is not None and key[1] in type(section).model_fields:
            lines += _comment(type(section).model_fields[key[1]].description or "")
        lines.append(line)
    return "\n".join(lines) + "\n"


def _section(recipe: Recipe, path: list[str]) -> BaseModel | None:
    """The section of a table's path; None for tables of free form, such as the options of metrics."""
    found: Any = recipe
    for name in path:
        if not isinstance(found, BaseModel) or name not in type(found).model_fields:
            return None
        found = getattr(found, name)
        if isinstance(found, tuple):  # an array of tables
            found = found[0]
    return found if isinstance(found, BaseModel) else None


def _comment(description: str) -> list[str]:
    words = " ".join(description.split())
    return [f"# {line}" for line in textwrap.wrap(words, _WIDTH)]
