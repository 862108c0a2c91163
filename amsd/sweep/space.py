"""The search space: which values a dimension may take, and what a point means for the recipe."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from amsd.sweep.schema import Dimension, Sweep

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial

#: Values of a float range without `step` and `points` that a grid tries.
GRID_POINTS = 5


def distribution(dimension: Dimension) -> BaseDistribution:
    """The same axis as Optuna sees it; variants are chosen by name."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if dimension.choices is not None:
        return CategoricalDistribution(dimension.choices)
    if dimension.variants is not None:
        return CategoricalDistribution(tuple(dimension.variants))
    assert dimension.low is not None
    assert dimension.high is not None
    if dimension.is_int:
        return IntDistribution(int(dimension.low), int(dimension.high), dimension.log, int(dimension.step or 1))
    return FloatDistribution(float(dimension.low), float(dimension.high), dimension.log, dimension.step)


def active(dimension: Dimension, params: Mapping[str, Any]) -> bool:
    """Whether the dimension is searched, given the values chosen so far."""
    return all(name in params and condition.holds(params[name]) for name, condition in dimension.when.items())


def suggest(sweep: Sweep, trial: Trial) -> dict[str, Any]:
    """Let the sampler choose a value for every active dimension (those asked for by conditions come first)."""
    params: dict[str, Any] = {}
    for name in ordered(sweep.search):
        dimension = sweep.search[name]
        if active(dimension, params):
            params[name] = trial._suggest(name, distribution(dimension))
    return params


def settings_of(sweep: Sweep, params: Mapping[str, Any]) -> dict[str, Any]:
    """Recipe key -> value that a point sets; variants are written out."""
    settings: dict[str, Any] = {}
    for name, value in params.items():
        dimension = sweep.search.get(name)
        if dimension is not None and dimension.variants is not None:
            settings.update(dimension.variants[value])
        else:
            settings[name] = value
    return settings


def ordered(search: Mapping[str, Dimension]) -> list[str]:
    """Names such that a dimension stands after those its conditions ask for.

    Raises:
        ValueError: the conditions go round in a circle.
    """
    done: list[str] = []
    left = list(search)
    while left:
        ready = [name for name in left if all(parent in done or parent not in search for parent in search[name].when)]
        if not ready:
            raise ValueError(f"the conditions of {', '.join(left)} depend on each other in a circle")
        done += ready
        left = [name for name in left if name not in ready]
    return done


def values(dimension: Dimension) -> list[Any]:
    """Values that a grid tries; of a float range without step, evenly spaced ones (also in the logarithm)."""
    if dimension.choices is not None:
        return list(dimension.choices)
    if dimension.variants is not None:
        return list(dimension.variants)
    assert dimension.low is not None
    assert dimension.high is not None
    low, high = dimension.low, dimension.high
    if dimension.is_int and not dimension.log and dimension.points is None:
        return list(range(int(low), int(high) + 1, int(dimension.step or 1)))
    if dimension.step is not None:
        count = math.floor((high - low) / dimension.step + 1e-9)
        return [low + index * dimension.step for index in range(count + 1)]
    spaced = _spaced(float(low), float(high), dimension.points or GRID_POINTS, dimension.log)
    return sorted({round(value) for value in spaced}) if dimension.is_int else spaced


def ends(dimension: Dimension) -> list[Any]:
    """Values that stand for a dimension when it is checked: every choice, or both ends of a range."""
    if dimension.low is not None and dimension.high is not None:
        return [dimension.low, dimension.high] if dimension.is_int else [float(dimension.low), float(dimension.high)]
    return values(dimension)


def grid(sweep: Sweep) -> list[dict[str, Any]]:
    """Every distinct point: an inactive dimension is left out instead of multiplied."""
    points: list[dict[str, Any]] = [{}]
    for name in ordered(sweep.search):
        dimension = sweep.search[name]
        points = [extended for point in points for extended in _extend(point, name, dimension)]
    return points


def _extend(point: dict[str, Any], name: str, dimension: Dimension) -> Iterator[dict[str, Any]]:
    if not active(dimension, point):
        yield point
        return
    for value in values(dimension):
        yield {**point, name: value}


def _spaced(low: float, high: float, count: int, log: bool) -> list[float]:
    if log:
        return [math.exp(value) for value in _spaced(math.log(low), math.log(high), count, log=False)]
    return [low + (high - low) * index / (count - 1) for index in range(count)]


def satisfying(sweep: Sweep, name: str) -> dict[str, Any]:
    """Values of the other dimensions under which `name` is active, as far as its conditions tell."""
    chosen: dict[str, Any] = {}
    for parent, condition in sweep.search[name].when.items():
        candidates: Sequence[Any] = values(sweep.search[parent])
        fitting = next((value for value in candidates if condition.holds(value)), None)
        if fitting is None:
            raise ValueError(f"no value of {parent} fulfils the condition, so this dimension is never searched")
        chosen |= {**satisfying(sweep, parent), parent: fitting}
    return chosen
