"""Sweep file (or name) -> `SweepPlan`, with every problem reported at once."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from amsd.errors import UsageError
from amsd.recipe import RecipeError, parse_assignment
from amsd.recipe.catalog import find
from amsd.recipe.errors import problems_from
from amsd.recipe.load import assign, read_toml
from amsd.recipe.paths import anchor
from amsd.sweep.checks import problems_of
from amsd.sweep.schema import FORMAT, Sweep, SweepPlan
from amsd.sweep.search import Dimension
from amsd.urls import is_server, shown_server


def load_plan(source: str | Path, assignments: Sequence[str] = ()) -> SweepPlan:
    """Read a sweep file, or a shipped sweep by name; `key=value` assignments override keys of the sweep.

    Raises:
        UsageError: the file is absent or not TOML.
        RecipeError: the sweep or its base recipe has problems; all are named.
    """
    path = find(str(source), kind="sweeps")
    tree = read_toml(path)
    for assignment in assignments:
        assign(tree, *parse_assignment(assignment))
    tree.setdefault("name", path.stem)
    recipe = tree.get("recipe")
    base: dict[str, Any] = {}
    if recipe:
        beside = path.parent / str(recipe)
        file = beside if beside.is_file() else find(str(recipe), kind="recipes")
        base = read_toml(file)
        anchor(base, file.parent)
    return plan_from(tree, base, source=path.name)


def plan_from(tree: Mapping[str, Any], base: Mapping[str, Any], source: str = "sweep") -> SweepPlan:
    """Check plain data of a sweep (as TOML gives it) against the recipe it is based on.

    Raises:
        RecipeError: with every problem found.
    """
    require_format(tree.get("format", FORMAT), source)
    try:
        sweep = Sweep.model_validate_json(json.dumps(_flattened(tree), default=str))
    except ValidationError as error:
        raise RecipeError(source, problems_from(error, Sweep)) from None
    recipe = copy.deepcopy(dict(base))
    for key, value in sweep.override.items():
        assign(recipe, key, value)
    plan = SweepPlan(sweep, recipe)
    try:
        _ = plan.recipe
    except RecipeError as error:
        raise RecipeError(f"{source}: base recipe {sweep.recipe!r} with [override]", error.problems) from None
    if problems := problems_of(plan):
        raise RecipeError(source, problems)
    return plan


def restore_plan(data: Any, source: str = "sweep in the storage") -> SweepPlan:
    """The plan that `SweepPlan.dump` wrote.

    Raises:
        UsageError: it is damaged, or a newer amsd wrote it.
    """
    if not isinstance(data, Mapping):
        raise UsageError(f"{source}: is not the plan of a sweep")
    require_format(data.get("format", FORMAT), source)
    if not all(isinstance(data.get(part), Mapping) for part in ("sweep", "recipe")):
        raise UsageError(f"{source}: the plan is damaged or not made by amsd (no table of a sweep, or of its recipe)")
    try:
        return replace(plan_from(data["sweep"], data["recipe"], source=source), older="format" not in data)
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{source}: the plan is damaged or not made by amsd ({error})") from None


def require_format(version: Any, source: str) -> None:
    """Refuse a file of a newer amsd.

    Raises:
        UsageError: naming both versions.
    """
    if version != FORMAT or isinstance(version, bool):
        raise UsageError(f"{source}: has format {version!r}, but this amsd reads format {FORMAT}. "
                         "A newer amsd wrote it: update amsd, or correct the line `format`.")  # fmt: skip


def code_in(data: Any, key: str = "") -> list[str]:
    """Keys and values of a plan that would run code or send pictures away when a trial trains.

    These are `python:` scorers, trusted pickles and reward servers.
    """
    if isinstance(data, Mapping):
        own = [f"{key}{name} = true" for name, value in data.items() if name.endswith("trust_pickle") and value]
        return own + [found for name, value in data.items() for found in code_in(value, f"{key}{name}.")]
    if isinstance(data, list | tuple):
        return [found for index, value in enumerate(data) for found in code_in(value, f"{key.rstrip('.')}[{index}].")]
    if not isinstance(data, str):
        return []
    if data.startswith("python:"):
        return [f"{key.rstrip('.')} = {data}"]
    scorer = "reward" in key or "metrics" in key  # elsewhere a URL is only a text
    return [f"{key.rstrip('.')} = {shown_server(data)}"] if scorer and is_server(data) else []


def _flattened(tree: Mapping[str, Any]) -> dict[str, Any]:
    """`search.schedule.eta = {...}` and `search."schedule.eta" = {...}` are the same; so with override and first."""
    flat = dict(tree)
    if isinstance(flat.get("search"), dict):
        flat["search"] = {name: _dimension(entry) for name, entry in _leaves(flat["search"], _is_dimension)}
    if isinstance(flat.get("override"), dict):
        flat["override"] = dict(_leaves(flat["override"]))
    if isinstance(flat.get("first"), list):
        flat["first"] = [dict(_leaves(point)) if isinstance(point, dict) else point for point in flat["first"]]
    return flat


def _leaves(tree: Mapping[str, Any], is_leaf: Any = lambda _: False, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, entry in tree.items():
        if isinstance(entry, dict) and entry and not is_leaf(entry):
            yield from _leaves(entry, is_leaf, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", entry


def _is_dimension(entry: Mapping[str, Any]) -> bool:
    return bool(entry.keys() & Dimension.model_fields.keys()) or not any(isinstance(v, dict) for v in entry.values())


def _dimension(entry: Any) -> Any:
    if not isinstance(entry, dict):
        return entry
    entry = dict(entry)
    if isinstance(entry.get("variants"), dict):
        variants = entry["variants"].items()
        entry["variants"] = {k: dict(_leaves(v)) if isinstance(v, dict) else v for k, v in variants}
    if isinstance(entry.get("when"), dict):
        entry["when"] = dict(_leaves(entry["when"], lambda node: bool(node.keys() & {"one_of", "above", "below"})))
    return entry
