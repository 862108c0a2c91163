"""Sweep file (or name) -> `Plan`: the sweep and its base recipe, with every problem reported at once."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from amsd.errors import UsageError
from amsd.evaluation.result import DIVERSITY, FID, KID, is_distance
from amsd.recipe import Problem, Recipe, RecipeError, from_dict, parse_assignment
from amsd.recipe.catalogue import find
from amsd.recipe.errors import problems_from
from amsd.recipe.load import assign, read_toml
from amsd.sweep.schema import TRAINING, Dimension, Objective, Sweep
from amsd.sweep.space import ends, ordered, satisfying, settings_of


@dataclass(frozen=True)
class Plan:
    """A checked sweep with its base recipe; all that a worker needs to know."""

    sweep: Sweep
    tree: Mapping[str, Any]
    """Base recipe with the overrides, as plain data."""

    @cached_property
    def recipe(self) -> Recipe:
        """The base recipe with the overrides."""
        return from_dict(self.tree, source=f"base recipe of sweep {self.sweep.name}")

    def resolve(self, settings: Mapping[str, Any]) -> Recipe:
        """The recipe of a point.

        Raises:
            RecipeError: these values do not go together.
        """
        tree = copy.deepcopy(dict(self.tree))
        for key, value in settings.items():
            assign(tree, key, value)
        shown = ", ".join(f"{key} = {value}" for key, value in settings.items())
        return from_dict(tree, source=f"sweep {self.sweep.name} at {shown}")

    def dump(self) -> dict[str, Any]:
        """As JSON data, for the storage."""
        return {"sweep": self.sweep.model_dump(mode="json", exclude_unset=True), "recipe": dict(self.tree)}


def load_plan(source: str | Path, assignments: Sequence[str] = ()) -> Plan:
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
    beside = path.parent / str(recipe)
    base = read_toml(beside if beside.is_file() else find(str(recipe), kind="recipes")) if recipe else {}
    return plan_from(tree, base, source=path.name)


def plan_from(tree: Mapping[str, Any], base: Mapping[str, Any], source: str = "sweep") -> Plan:
    """Check plain data of a sweep (as TOML gives it) against the recipe it is based on.

    Raises:
        RecipeError: with every problem found.
    """
    try:
        sweep = Sweep.model_validate_json(json.dumps(_flattened(tree), default=str))
    except ValidationError as error:
        raise RecipeError(source, problems_from(error, Sweep)) from None
    recipe = copy.deepcopy(dict(base))
    for key, value in sweep.override.items():
        assign(recipe, key, value)
    plan = Plan(sweep, recipe)
    try:
        _ = plan.recipe
    except RecipeError as error:
        raise RecipeError(f"{source}: base recipe {sweep.recipe!r} with [override]", error.problems) from None
    problems = [*_relations(sweep), *_metrics(plan), *_machinery(sweep)]
    problems = problems or list(_search(plan))
    if problems:
        raise RecipeError(source, problems)
    return plan


def restore_plan(data: Mapping[str, Any]) -> Plan:
    """The plan that `Plan.dump` wrote.

    Raises:
        UsageError: another version of amsd wrote it and this one cannot read it.
    """
    try:
        return plan_from(data["sweep"], data["recipe"], source="sweep in the storage")
    except KeyError as error:
        raise UsageError(f"the study's plan lacks {error}: it was not made by this version of amsd") from None


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


def _relations(sweep: Sweep) -> Iterator[Problem]:
    """Names inside the sweep that must refer to a dimension."""
    known = list(sweep.search)
    for name, dimension in sweep.search.items():
        for parent in dimension.when:
            if parent not in sweep.search:
                yield Problem(f"search.{name}.when", "names no dimension of this search", parent, _near(parent, known))
        if name.startswith("tracking.") or name == "training.seed":
            yield Problem(f"search.{name}", "is set by the sweep itself", suggestion="Use seeds for repetitions.")
    for index, point in enumerate(sweep.first):
        for name, value in point.items():
            if name not in sweep.search:
                yield Problem(f"first[{index}]", "names no dimension of this search", name, _near(name, known))
            elif not _contains(sweep.search[name], value):
                yield Problem(f"first[{index}].{name}", "is not a value of this dimension", value)


def _contains(dimension: Dimension, value: Any) -> bool:
    if dimension.low is not None and dimension.high is not None:
        return isinstance(value, int | float) and dimension.low <= value <= dimension.high
    return value in (dimension.choices or dimension.variants or ())


def _metrics(plan: Plan) -> Iterator[Problem]:
    """Objectives and constraints must name what a run measures."""
    recipe, sweep = plan.recipe, plan.sweep
    measured = [term.name for term in recipe.reward] + list(recipe.evaluation.metrics)
    measured += [f"{DIVERSITY}{name}" for name in recipe.evaluation.diversity]
    measured += [f"{kind}{name}" for name in recipe.evaluation.distance for kind in (KID, FID)]
    named = [(f"objective[{i}].metric", o.metric) for i, o in enumerate(sweep.objective)]
    named += [(f"constraint[{i}].metric", c.metric) for i, c in enumerate(sweep.constraint)]
    for key, metric in named:
        if not metric.startswith(TRAINING) and metric not in measured:
            yield Problem(key, "is not evaluated by the base recipe", metric, _near(metric, measured))
    settings = [setting.name for setting in recipe.evaluation_settings]
    searched = {key for point in sweep.search.values() for v in (point.variants or {}).values() for key in v}
    fixed = not any(key.startswith(("evaluation.", "schedule.", "guidance.")) for key in {*sweep.search, *searched})
    for index, objective in enumerate(sweep.objective):
        if fixed and objective.setting is not None and objective.setting not in settings:
            problem = "is no evaluation setting of the base recipe"
            yield Problem(f"objective[{index}].setting", problem, objective.setting, _near(objective.setting, settings))
        if is_distance(objective.metric):
            yield from _distance_objective(f"objective[{index}]", objective)
    labels = [objective.label for objective in sweep.objective]
    for index, label in enumerate(labels):
        if label in labels[:index]:
            yield Problem(f"objective[{index}]", "the same objective stands twice", label)


def _distance_objective(key: str, objective: Objective) -> Iterator[Problem]:
    """A distance to the base model is better if it is smaller, and the base itself has none to be paired with."""
    if objective.direction == "maximize":
        yield Problem(f"{key}.direction", "would move away from the base model", "maximize", 'Use "minimize".')
    if objective.value == "difference":
        yield Problem(f"{key}.value", "a distance to the base model is a comparison already", "difference",
                      'Use "mean".')  # fmt: skip


def _machinery(sweep: Sweep) -> Iterator[Problem]:
    """Sampler, pruner and budget must fit the objectives and the space."""
    if sweep.pruner.name != "none" and len(sweep.objective) > 1:
        yield Problem("pruner.name", "only a single objective can be pruned", sweep.pruner.name, 'Use "none".')
    budget = sweep.budget
    endless = budget.trials is None and budget.seconds is None and budget.unet_evaluations is None
    if endless and sweep.sampler.name != "grid":
        yield Problem("budget", "is required: trials, seconds or unet_evaluations (only a grid ends by itself)")
    if sweep.execution.lost_after_seconds < 2 * sweep.execution.heartbeat_seconds:
        yield Problem("execution.lost_after_seconds", "must be at least twice execution.heartbeat_seconds",
                      sweep.execution.lost_after_seconds)  # fmt: skip


def _search(plan: Plan) -> Iterator[Problem]:
    """Resolve sample recipes: every choice and both ends of every range must be a valid value of a valid key."""
    sweep = plan.sweep
    try:
        ordered(sweep.search)
        parents = {name: satisfying(sweep, name) for name in sweep.search}
    except ValueError as error:
        yield Problem("search", str(error))
        return
    seen: set[str] = set()
    points = [{**parents[name], name: value} for name, dim in sweep.search.items() for value in ends(dim)]
    for point in [*points, *(dict(first) for first in sweep.first)]:
        try:
            plan.resolve(settings_of(sweep, point))
        except RecipeError as error:
            for problem in error.problems:
                if str(problem) not in seen:
                    seen.add(str(problem))
                    yield Problem(f"search: {problem.key}", problem.message, problem.value, problem.suggestion)


def _near(name: str, known: Sequence[str]) -> str | None:
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(known)}." if known else None
