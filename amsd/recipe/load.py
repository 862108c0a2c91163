"""TOML file (or name) plus assignments -> `Recipe`, with every problem reported at once."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from amsd.errors import UsageError
from amsd.recipe.catalogue import find
from amsd.recipe.errors import Problem, RecipeError, validated
from amsd.recipe.identity import AS_BEFORE
from amsd.recipe.methods import DEFAULT, read_method, rows, section_of
from amsd.recipe.rules import violations
from amsd.recipe.schema import Recipe

#: Version of the recipe file.
FORMAT = 1
_BARE_KEY = re.compile("[A-Za-z0-9_-]+")


def load_recipe(source: str | Path, assignments: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, or a shipped recipe by name, apply `key=value` assignments and check it.

    Raises:
        RecipeError: the file is absent or not TOML, or the recipe has problems; all are named.
    """
    path = find(str(source), kind="recipes")
    tree = read_toml(path)
    anchor_prompts(tree, path.parent)
    label = path.name
    for assignment in assignments:
        key, value = parse_assignment(assignment)
        assign(tree, key, value)
        label = f"{path.name} with --set"
    return from_dict(tree, source=label)


def anchor_prompts(tree: dict[str, Any], folder: Path) -> None:
    """Let prompt files be named relative to the recipe's folder, where the working directory has no such file."""
    prompts = tree.get("prompts")
    if not isinstance(prompts, dict):
        return
    for key in ("train", "evaluation"):
        name = prompts.get(key)
        if isinstance(name, str) and not Path(name).is_file() and (folder / name).is_file():
            prompts[key] = str(folder / name)


def from_dict(tree: Mapping[str, Any], source: str = "recipe") -> Recipe:
    """Check plain data (as TOML gives it) and freeze it.

    Raises:
        RecipeError: with every problem found.
    """
    tree = _of_known_format(tree, source)
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
    name = tree.get("method", {}).get("name", DEFAULT)
    before = {**AS_BEFORE, "method": section_of(name).as_before if name in rows() else {}}
    for section, values in before.items():
        if isinstance(tree.get(section, {}), dict):
            tree[section] = {**values, **tree.get(section, {})}
    return from_dict(tree, source=str(path))


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file.

    Raises:
        UsageError: the file cannot be read or is not TOML; the line is named.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 text (byte {error.start})") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: is not valid TOML: {error}") from None


def parse_assignment(text: str) -> tuple[str, Any]:
    """`"a.b=1.5"` -> `("a.b", 1.5)`. The value is TOML, or a bare string if it is none.

    Raises:
        RecipeError: there is no `=`.
    """
    key, separator, raw = text.partition("=")
    key = key.strip()
    if not separator or not key:
        raise RecipeError("--set", [Problem(text, "must have the form key=value, such as schedule.eta=0.7")])
    try:
        return key, tomllib.loads(f"value = {raw.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        return key, raw.strip()


def assign(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set `tree[a][b] = value` for the key `a.b`; `reward.0.weight` or `reward[0].weight` reaches into lists.

    Raises:
        RecipeError: a part of the path is a plain value or a list index that does not exist.
    """
    parts = key.replace("[", ".").replace("]", "").split(".")
    node: Any = tree
    for depth, part in enumerate(parts):
        here = ".".join(parts[: depth + 1])
        last = depth == len(parts) - 1
        if isinstance(node, list):
            if not part.isdigit() or int(part) >= len(node):
                raise RecipeError("--set", [Problem(here, f"no such entry; there are {len(node)}", part)])
            index: Any = int(part)
        elif isinstance(node, dict):
            index = part
            if not last:
                node.setdefault(part, {})
        else:
            raise RecipeError("--set", [Problem(here, "its parent is a value, not a table", key)])
        if last:
            node[index] = value
        else:
            node = node[index]


def dump_toml(recipe: Recipe) -> str:
    """The fully resolved recipe as TOML that loads back to an equal recipe (unset keys are left out)."""
    tree = recipe.model_dump(mode="json", exclude_none=True)
    lines: list[str] = [f"format = {FORMAT}", ""]
    for name, section in tree.items():
        if name == "reward":
            for term in section:
                lines += ["[[reward]]", *_table(term), ""]
        else:
            lines += _section(name, section)
    return "\n".join(lines).rstrip() + "\n"


def _section(name: str, section: dict[str, Any]) -> list[str]:
    tables = {key: value for key, value in section.items() if isinstance(value, dict)}
    plain = {key: value for key, value in section.items() if key not in tables}
    lines = [f"[{name}]", *_table(plain), ""]
    for key, table in tables.items():
        lines += _section(f"{name}.{_key(key)}", table)
    return lines


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else _scalar(name)


def _table(table: dict[str, Any]) -> list[str]:
    return [f"{_key(key)} = {_value(value)}" for key, value in table.items()]


def _value(value: Any) -> str:
    if isinstance(value, dict):
        entries = (f"{_scalar(key)} = {_value(entry)}" for key, entry in value.items())
        return "{ " + ", ".join(entries) + " }" if value else "{}"
    if isinstance(value, list):
        return "[" + ", ".join(_value(entry) for entry in value) + "]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    # JSON's texts, numbers and booleans are TOML's too, but for the one control character that JSON leaves unescaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
