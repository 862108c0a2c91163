"""The table of methods: `method.name` to the class of its `[method]` table. Packages add rows as entry points."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, cast

from amsd.errors import UsageError, nearest
from amsd.plugins import Seam
from amsd.recipe.errors import Problem, validated
from amsd.recipe.methods.base import MethodSection

METHODS: dict[str, str] = {
    "am": "amsd.recipe.methods.adjoint_matching:AdjointMatching",
    "buffer-am": "amsd.recipe.methods.adjoint_matching:BufferedAdjointMatching",
    "eam": "amsd.recipe.methods.regression:EAM",
    "ram": "amsd.recipe.methods.regression:RAM",
    "draft": "amsd.recipe.methods.backpropagation:DRaFT",
    "refl": "amsd.recipe.methods.backpropagation:ReFL",
    "ddpo": "amsd.recipe.methods.policy_gradient:DDPO",
}
"""Name to `module:class`, the class derived from `MethodSection`."""
GROUP = "amsd.methods"
"""Entry points of installed packages: rows of the same form."""
DEFAULT = "am"


_SEAM = Seam(
    "a method", GROUP, METHODS, base="amsd.recipe.methods.base:MethodSection", members=("label", "trainer", "cost")
)
_LOG = logging.getLogger(__name__)


def rows() -> dict[str, str]:
    """All rows, those of installed packages too."""
    return _SEAM.rows()


def section_of(name: str) -> type[MethodSection]:
    """The class of a method's table.

    Raises:
        UsageError: no method has this name, or the package that brings it is broken.
    """
    return _load(name, rows().get(name, ""))


@cache
def _load(name: str, row: str) -> type[MethodSection]:
    return cast("type[MethodSection]", _SEAM.load(name))


def methods_with(quality: Callable[[type[MethodSection]], bool]) -> str:
    """Names of the methods that have a quality, for messages: `"ram" or "ddpo"`."""
    return " or ".join(f'"{name}"' for name, section in _sections().items() if quality(section)) or "another one"


def read_method(tree: Any) -> tuple[MethodSection | None, list[Problem]]:
    """The `[method]` table from plain data, or everything that is wrong with it.

    Keys of other methods are kept out and noted (`ignored`); a key of none is an error.
    """
    if not isinstance(tree, Mapping):
        return None, [Problem("method", "must be a table, [method]", tree)]
    name = tree.get("name", DEFAULT)
    known = rows()
    if not isinstance(name, str) or name not in known:
        allowed = ", ".join(repr(each) for each in known)
        return None, [Problem("method.name", f"must be one of {allowed}", name, nearest(name, list(known)))]
    section = section_of(name)
    owners = {key: _owners(key) for key in tree}
    unknown = [key for key, found in owners.items() if not found]
    others = {key: found[0] for key, found in owners.items() if found and section not in found}
    own = {key: value for key, value in tree.items() if section in owners[key]}
    found, problems = validated(section, own, ("method",))
    for key, owner in others.items():
        problems += validated(owner, {key: tree[key]}, ("method",))[1]
    every = list(dict.fromkeys(key for each in _sections().values() for key in each.model_fields))
    problems += [Problem(f"method.{key}", "unknown key", suggestion=nearest(key, every)) for key in unknown]
    if found is not None:
        found._ignored = tuple(f"method.{key}" for key in others)
    return (None if problems else found), problems


def _owners(key: str) -> list[type[MethodSection]]:
    """Methods that have this key."""
    return [section for section in _sections().values() if key in section.model_fields]


def _sections() -> dict[str, type[MethodSection]]:
    """The methods that can be used; a broken one of some package must not spoil recipes of others."""
    found = {name: _usable(name, row) for name, row in rows().items()}
    return {name: section for name, section in found.items() if section is not None}


@cache
def _usable(name: str, row: str) -> type[MethodSection] | None:
    try:
        return _load(name, row)
    except UsageError as error:
        _LOG.warning("%s", error)  # once
        return None
