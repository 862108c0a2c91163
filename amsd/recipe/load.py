"""TOML file (or name) plus assignments -> `Recipe`, with every problem reported at once."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from amsd.errors import UsageError, option
from amsd.recipe.catalog import find
from amsd.recipe.errors import Problem, RecipeError, validated
from amsd.recipe.identity import AS_BEFORE
from amsd.recipe.methods import DEFAULT, read_method, rows, section_of
from amsd.recipe.methods.base import MethodSection
from amsd.recipe.paths import anchor
from amsd.recipe.rules import violations
from amsd.recipe.tree import Recipe

#: Version of the recipe file.
FORMAT = 1
#: Nobody writes a recipe of more bytes, nor tables within tables of more levels: what does is another file.
LARGEST = 4 * 2**20
DEEPEST = 50


def load_recipe(source: str | Path, assignments: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, or a shipped recipe by name, apply `key=value` assignments and check it.

    Paths become absolute: those of the file are found from the working directory or from the file's folder, those of
    assignments from the working directory.

    Raises:
        RecipeError: the file is absent or not TOML, or the recipe has problems; all are named.
    """
    path = find(str(source), kind="recipes")
    tree = read_toml(path)
    anchor(tree, path.parent)
    label = path.name
    for assignment in assignments:
        key, value = parse_assignment(assignment)
        assign(tree, key, value)
        label = f"{path.name} with {_assigned()}"
    if assignments:
        anchor(tree, Path())
    return from_dict(tree, source=label)


def from_dict(tree: Mapping[str, Any], source: str = "recipe") -> Recipe:
    """Check plain data (as TOML gives it) and freeze it.

    Raises:
        RecipeError: with every problem found.
    """
    unwritable = list(_unwritable(tree))
    if unwritable:
        raise RecipeError(source, unwritable)
    tree = _of_known_format(_as_meant(tree), source)
    method, problems = read_method(tree.get("method", {}))
    recipe, others = validated(Recipe, {key: value for key, value in tree.items() if key != "method"})
    if method is None or recipe is None:
        raise RecipeError(source, [*problems, *others])
    recipe = recipe.model_copy(update={"method": method.fitted(recipe)})
    problems = violations(recipe)
    if problems:
        raise RecipeError(source, problems)
    return recipe


def _of_known_format(tree: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The tree without its format version, which recipes of runs carry and others may leave out.

    Raises:
        RecipeError: the version is unknown.
    """
    written = tree.get("format", FORMAT)
    if written != FORMAT or isinstance(written, bool):
        problem = f"is not a format that this amsd reads ({FORMAT}); a newer amsd wrote it: update amsd"
        raise RecipeError(source, [Problem("format", problem, written)])
    return {key: value for key, value in tree.items() if key != "format"}


def read_run(path: Path) -> Recipe:
    """The `recipe.toml` of a run: a key that it lacks came later, and means what it meant before.

    Raises:
        RecipeError, UsageError: it is no recipe.
    """
    tree = read_toml(path)
    anchor(tree, path.parent)
    return from_dict(as_before(tree), source=str(path))


def as_before(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The tree, with keys that came later and that it lacks at what recipes without them meant."""
    section = _section_of(tree)
    found = dict(tree)
    for name, values in {**AS_BEFORE, "method": section.as_before if section else {}}.items():
        if isinstance(tree.get(name, {}), Mapping):
            found[name] = {**values, **tree.get(name, {})}
    return found


def _as_meant(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """A recipe that an older amsd wrote, read as that amsd read it; any other as it stands.

    Such a file has every table, and names every key that there was: of `[method]` all but those that came later.
    """
    section, table = _section_of(tree), tree.get("method")
    tables = Recipe.model_fields.keys() - {"code", "origin"}
    if section is None or not isinstance(table, Mapping) or not tables <= tree.keys():
        return tree
    set_then = {name for name, field in section.model_fields.items() if field.default is not None}
    return as_before(tree) if set_then - section.as_before.keys() <= table.keys() else tree


def _section_of(tree: Mapping[str, Any]) -> type[MethodSection] | None:
    """The class of the `[method]` table; None where no method has its name."""
    method = tree.get("method", {})
    name = method.get("name", DEFAULT) if isinstance(method, Mapping) else None
    return section_of(name) if isinstance(name, str) and name in rows() else None


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file; a byte order mark and Windows line ends are fine.

    Raises:
        UsageError: the file cannot be read or is not TOML; the line is named.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise UsageError(f"{path}: has {path.stat().st_size:,} bytes; a recipe or sweep may have {LARGEST:,}.")
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 text (byte {error.start})") from None
    except RecursionError:
        raise UsageError(f"{path}: is nested too deeply to be a recipe or sweep") from None
    except ValueError as error:  # TOML's own error, or a number of thousands of digits
        raise UsageError(f"{path}: is not valid TOML: {error}") from None


def _assigned() -> str:
    """Where assignments stand."""
    return option("set", "assignments")


def parse_assignment(text: str) -> tuple[str, Any]:
    """`"a.b=1.5"` -> `("a.b", 1.5)`. The value is TOML, or a bare string if it is none.

    Raises:
        RecipeError: there is no `=`, or more than one value.
    """
    key, separator, raw = text.partition("=")
    key, raw = key.strip(), raw.strip()
    if not separator or not key:
        raise RecipeError(_assigned(), [Problem(text, "must have the form key=value, such as schedule.eta=0.7")])
    try:
        parsed = tomllib.loads(f"value = {raw}")
    except tomllib.TOMLDecodeError:
        return key, raw
    except (RecursionError, ValueError) as error:
        reason = "is nested too deeply" if isinstance(error, RecursionError) else f"cannot be read: {error}"
        raise RecipeError(_assigned(), [Problem(key, reason, raw)]) from None
    if len(parsed) > 1:
        raise RecipeError(_assigned(), [Problem(key, "is one value; set every key by itself", raw)])
    return key, parsed["value"]


def assign(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set `tree[a][b] = value` for the key `a.b`; `reward.0.weight` or `reward[0].weight` reaches into lists.

    Raises:
        RecipeError: a part of the path is a plain value or a list index that does not exist.
    """
    parts = key.replace("[", ".").replace("]", "").split(".")
    if len(parts) > DEEPEST:
        raise RecipeError(_assigned(), [Problem(key, f"is nested {len(parts)} tables deep; no key is")])
    node: Any = tree
    for depth, part in enumerate(parts):
        here = ".".join(parts[: depth + 1])
        last = depth == len(parts) - 1
        if isinstance(node, list):
            if not (part.isascii() and part.isdecimal() and len(part) < 10 and int(part) < len(node)):
                raise RecipeError(_assigned(), [Problem(here, f"no such entry; there are {len(node)}", part)])
            index: Any = int(part)
        elif isinstance(node, dict):
            index = part
            if not last:
                node.setdefault(part, {})
        else:
            raise RecipeError(_assigned(), [Problem(here, "its parent is a value, not a table", key)])
        if last:
            node[index] = value
        else:
            node = node[index]


def dump_toml(recipe: Recipe) -> str:
    """The fully resolved recipe as TOML that loads back to an equal recipe (unset keys are left out)."""
    import tomli_w

    return tomli_w.dumps({"format": FORMAT, **recipe.model_dump(mode="json", exclude_none=True)})


def _unwritable(node: Any, key: str = "", depth: int = 0) -> Iterator[Problem]:
    """What no TOML file can hold: texts that are not Unicode (arguments of a terminal may be such), endless nesting."""
    if depth > DEEPEST:
        yield Problem(key, "is nested too deeply")
    elif isinstance(node, Mapping):
        for name, entry in node.items():
            yield from _unwritable(str(name), f"{key}.{_printable(str(name))}".removeprefix("."), depth + 1)
            yield from _unwritable(entry, f"{key}.{_printable(str(name))}".removeprefix("."), depth + 1)
    elif isinstance(node, list | tuple):
        for index, entry in enumerate(node):
            yield from _unwritable(entry, f"{key}[{index}]", depth + 1)
    elif isinstance(node, str) and _printable(node) != node:
        yield Problem(key, "is not Unicode text", _printable(node))
    elif isinstance(node, int) and abs(node) >= 2**63:
        yield Problem(key, "is too large: whole numbers of a recipe have 64 bits")


def _printable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")
