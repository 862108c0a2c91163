"""The search: dimensions, the points that they span, and what a point means for the recipe.

A dimension with `variants` sets several recipe keys at once under one name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from amsd.errors import UsageError
from amsd.recipe.section import RequiredName, Section

if TYPE_CHECKING:
    from optuna.trial import Trial

Scalar = bool | int | float | str
#: Values of a float range without `step` and `points` that a grid tries.
GRID_POINTS = 5
#: Points of a grid are queued at its start; nobody waits for more trials than these.
LARGEST_GRID = 100_000


class Condition(Section):
    """When a dimension is searched at all: a test of another dimension's value."""

    one_of: tuple[Scalar, ...] | None = Field(default=None, min_length=1)
    above: float | None = None
    below: float | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.one_of is None and self.above is None and self.below is None:
            raise ValueError("needs one_of, above or below")
        return self

    def holds(self, value: Scalar) -> bool:
        """Whether `value` of the other dimension lets this dimension be searched."""
        if self.one_of is not None and value not in self.one_of:
            return False
        if self.above is None and self.below is None:
            return True
        if isinstance(value, str):
            return False
        return (self.above is None or value > self.above) and (self.below is None or value < self.below)


class Dimension(Section):
    """One axis of the search: `choices`, `variants`, or a range `low` to `high`."""

    choices: tuple[Scalar, ...] | None = Field(default=None, min_length=1)
    """The values to choose from."""
    variants: Mapping[RequiredName, Mapping[RequiredName, Any]] | None = Field(default=None, min_length=1)
    """Name -> recipe keys that this variant sets."""
    low: int | float | None = None
    high: int | float | None = None
    step: int | float | None = Field(default=None, gt=0)
    """Distance between values of a range."""
    log: bool = False
    """Whether a range is searched on a logarithmic scale."""
    type: Literal["int", "float"] | None = None
    """Of a range; unset: int if `low` and `high` are written as integers."""
    points: int | None = Field(default=None, ge=2, le=100_000)
    """How many values of a float range `sampler = "grid"` tries."""
    when: Mapping[RequiredName, Condition] = Field(default_factory=dict)
    """Other dimension -> condition; all must hold, else the key keeps the recipe's value."""

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        is_range = self.low is not None or self.high is not None
        forms = (self.choices is not None) + (self.variants is not None) + is_range
        if forms != 1:
            raise ValueError("needs exactly one of: choices, variants, or low and high")
        if is_range:
            self._check_range()
        elif self.step is not None or self.log or self.type is not None or self.points is not None:
            raise ValueError("step, log, type and points belong to a range with low and high")
        if self.choices is not None and len({(type(c), c) for c in self.choices}) < len(self.choices):
            raise ValueError("a choice is listed twice")
        return self

    def _check_range(self) -> None:
        if self.low is None or self.high is None:
            raise ValueError("a range needs both low and high")
        if not self.low < self.high:
            raise ValueError(f"low = {self.low:g} must lie below high = {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range must start above 0, but low = {self.low:g}")
        if self.step is not None and (self.high - self.low) / self.step > 2**53:
            raise ValueError(f"step = {self.step:g} is too small for a range from {self.low:g} to {self.high:g}")
        if self.log and self.step is not None:
            raise ValueError("log and step cannot be used together")
        if self.is_int and not all(isinstance(v, int) for v in (self.low, self.high, self.step) if v is not None):
            raise ValueError("an int range needs integers for low, high and step")

    @property
    def kind(self) -> str:
        """What a range yields, in words."""
        return "integer" if self.is_int else "number"

    @property
    def is_int(self) -> bool:
        """Whether a range yields integers."""
        if self.type is not None:
            return self.type == "int"
        return isinstance(self.low, int) and isinstance(self.high, int)


#: Recipe key, or a free name with `variants` -> dimension.
Search = Mapping[str, Dimension]


def _suggested(trial: Trial, name: str, dimension: Dimension) -> Any:
    """The value that the sampler chooses; variants are chosen by name."""
    if dimension.low is None or dimension.high is None:
        return trial.suggest_categorical(name, list(dimension.choices or dimension.variants or ()))
    low, high = dimension.low, dimension.high
    if dimension.is_int:
        return trial.suggest_int(name, int(low), int(high), step=int(dimension.step or 1), log=dimension.log)
    return trial.suggest_float(name, float(low), float(high), step=dimension.step, log=dimension.log)


def active(dimension: Dimension, params: Mapping[str, Any]) -> bool:
    """Whether the dimension is searched, given the values chosen so far."""
    return all(name in params and condition.holds(params[name]) for name, condition in dimension.when.items())


def suggest(search: Search, trial: Trial) -> dict[str, Any]:
    """Let the sampler choose a value for every active dimension (those asked for by conditions come first).

    Raises:
        UsageError: the trial was queued with a value that the search does not have.
    """
    params: dict[str, Any] = {}
    for name in ordered(search):
        dimension = search[name]
        if active(dimension, params):
            value = _suggested(trial, name, dimension)
            try:  # Optuna only warns of a value that somebody queued and that lies outside
                params[name] = declared(dimension, value)
            except ValueError as error:
                raise UsageError(f"trial {trial.number}: {name}: {error}. The storage names a value that the sweep "
                                 "does not search.") from None  # fmt: skip
    return params


def declared(dimension: Dimension, value: Any) -> Any:
    """`value` as this dimension declares it (an integral number for an int range, a float for a float range).

    Raises:
        ValueError: the dimension does not have this value.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if dimension.low is None or dimension.high is None:
        for choice in dimension.choices or dimension.variants or ():
            if isinstance(choice, bool) == isinstance(value, bool) and choice == value:
                return choice
        raise ValueError(f"{value!r} is not one of {list(dimension.choices or dimension.variants or ())}")
    if not is_number or not dimension.low <= value <= dimension.high or (dimension.is_int and value != int(value)):
        raise ValueError(f"{value!r} must be of type {dimension.kind}, from {dimension.low:g} to {dimension.high:g}")
    return int(value) if dimension.is_int else float(value)


def settings_of(search: Search, params: Mapping[str, Any]) -> dict[str, Any]:
    """Recipe key -> value that a point sets; variants are written out."""
    settings: dict[str, Any] = {}
    for name, value in params.items():
        dimension = search.get(name)
        if dimension is not None and dimension.variants is not None:
            settings.update(dimension.variants[value])
        else:
            settings[name] = value
    return settings


def ordered(search: Search) -> list[str]:
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


def values(dimension: Dimension) -> Iterable[Any]:
    """Values that a grid tries, one by one; of a float range without step, evenly spaced ones (also in the logarithm).

    They can be iterated over again, and a range of a trillion takes no memory.
    """
    if dimension.choices is not None:
        return dimension.choices
    if dimension.variants is not None:
        return tuple(dimension.variants)
    assert dimension.low is not None
    assert dimension.high is not None
    low, high = dimension.low, dimension.high
    if dimension.is_int and not dimension.log and dimension.points is None:
        return range(int(low), int(high) + 1, int(dimension.step or 1))
    if dimension.step is not None:
        return Stepped(float(low), float(high), float(dimension.step))
    spaced = _spaced(float(low), float(high), dimension.points or GRID_POINTS, dimension.log)
    return sorted({round(value) for value in spaced}) if dimension.is_int else spaced


@dataclass(frozen=True)
class Stepped:
    """Numbers from `low` to `high` with a distance of `step`."""

    low: float
    high: float
    step: float

    def __iter__(self) -> Iterator[float]:
        count = math.floor((self.high - self.low) / self.step + 1e-9)
        return (self.low + index * self.step for index in range(count + 1))


def ends(dimension: Dimension) -> list[Any]:
    """Values that stand for a dimension when it is checked: every choice, or both ends of a range."""
    if dimension.low is not None and dimension.high is not None:
        return [dimension.low, dimension.high] if dimension.is_int else [float(dimension.low), float(dimension.high)]
    return list(values(dimension))


def grid(search: Search) -> Iterator[dict[str, Any]]:
    """Every distinct point, one by one: an inactive dimension is left out instead of multiplied."""
    points: Iterable[dict[str, Any]] = ({},)
    for name in ordered(search):
        points = _extended(points, name, search[name])
    yield from points


def _extended(points: Iterable[dict[str, Any]], name: str, dimension: Dimension) -> Iterator[dict[str, Any]]:
    for point in points:
        if active(dimension, point):
            yield from ({**point, name: value} for value in values(dimension))
        else:
            yield point


def _spaced(low: float, high: float, count: int, log: bool) -> list[float]:
    if log:
        return [math.exp(value) for value in _spaced(math.log(low), math.log(high), count, log=False)]
    return [low + (high - low) * index / (count - 1) for index in range(count)]


def satisfying(search: Search, name: str) -> dict[str, Any]:
    """Values of the other dimensions under which `name` is active, as far as its conditions tell."""
    chosen: dict[str, Any] = {}
    for parent, condition in search[name].when.items():
        fitting = next((v for v in _candidates(search[parent], condition) if condition.holds(v)), None)
        if fitting is None:
            raise ValueError(f"no value of {parent} meets the condition, so this dimension is never searched")
        chosen |= {**satisfying(search, parent), parent: fitting}
    return chosen


def _candidates(dimension: Dimension, condition: Condition) -> Iterator[Any]:
    """Values among which there is one that meets the condition, if the dimension has any such value."""
    if dimension.low is None or dimension.high is None:
        yield from values(dimension)
        return
    low = dimension.low if condition.above is None else max(dimension.low, condition.above)
    high = dimension.high if condition.below is None else min(dimension.high, condition.below)
    inside = [*(condition.one_of or ()), dimension.low, dimension.high, low + (high - low) / 2]
    if dimension.is_int and abs(low) < 2**63 and abs(high) < 2**63:
        inside += [math.floor(low) + 1, math.ceil(high) - 1]
    for value in inside:
        try:
            yield declared(dimension, value)
        except ValueError:  # outside of the range, or no whole number
            continue
