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
#: A list of one item a line; what begins with a brace or a bracket is a table or a list itself.
_LIST = re.compile(r"^([A-Za-z0-9_-]+ = )\[\n((?:    [^\s{\[].*,\n)+)\]$", re.MULTILINE)
_EMPTY = re.compile(r"^\[[^\[\]\n]+\]\n(?=\n|\Z)\n?", re.MULTILINE)
_WIDTH = 116


def with_comments(recipe: Recipe) -> str:
    """The fully resolved recipe as TOML, each section and key below a comment that says what it means."""
    lines: list[str] = []
    section: BaseModel | None = recipe
    for line in _short(dump_toml(recipe)).splitlines():
        header, key = _HEADER.match(line), _KEY.match(line)
        if header:
            section = _section(recipe, header[1].split("."))
            lines += _comment((type(section).__doc__ or "") if section else "")
        elif key and section is not None and key[1] in type(section).model_fields:
            lines += _comment(type(section).model_fields[key[1]].description or "")
        lines.append(line)
    return "\n".join(lines) + "\n"


def _short(text: str) -> str:
    """TOML in which lists of numbers and names take one line each, and without empty tables."""
    return _EMPTY.sub("", _LIST.sub(_on_one_line, text))


def _on_one_line(found: re.Match[str]) -> str:
    items = [line.strip().removesuffix(",") for line in found[2].splitlines()]
    line = f"{found[1]}[{', '.join(items)}]"
    return line if len(line) <= _WIDTH else found[0]


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
