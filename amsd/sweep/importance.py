"""How much of an objective's variation each searched key explains, and how sure that is."""

from __future__ import annotations

import random
import statistics
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from amsd.sweep.schema import Dimension

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

MIN_TRIALS = 12
"""Complete trials below which nothing is said: a share of fewer is chance."""
_REPETITIONS = 24


def importance(
    search: Mapping[str, Dimension], points: Sequence[Mapping[str, Any]], values: Sequence[float], maximize: bool
) -> dict[str, tuple[float, float]]:
    """Share of the variation among good trials that each key explains (PED-ANOVA), with its standard error.

    The error is the spread over bootstrap samples of the trials, and the share their mean. Only keys that every trial
    has and that took several values are compared. Empty below `MIN_TRIALS` trials, or where no key is left.
    """
    keys = [name for name in search if all(name in point for point in points)]
    keys = [name for name in keys if len({repr(point[name]) for point in points}) > 1]
    if len(points) < MIN_TRIALS or not keys:
        return {}
    distributions = {name: _distribution(search[name], [point[name] for point in points]) for name in keys}
    chance = random.Random(0)
    found: dict[str, list[float]] = {name: [] for name in keys}
    for _ in range(_REPETITIONS):
        drawn = [chance.randrange(len(points)) for _ in points]
        shares = _shares(
            distributions, [points[index] for index in drawn], [values[index] for index in drawn], maximize
        )
        for name in keys:
            found[name].append(shares.get(name, 0.0))
    return {name: (statistics.fmean(each), statistics.stdev(each)) for name, each in found.items()}


def _shares(
    distributions: Mapping[str, BaseDistribution],
    points: Sequence[Mapping[str, Any]],
    values: Sequence[float],
    maximize: bool,
) -> Mapping[str, float]:
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study()
        study.add_trials(
            [
                optuna.create_trial(
                    params={name: point[name] for name in distributions},
                    distributions=dict(distributions),
                    value=-value if maximize else value,  # PED-ANOVA asks which keys matter for low values
                )
                for point, value in zip(points, values, strict=True)
            ]
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return optuna.importance.get_param_importances(study)
    finally:
        optuna.logging.set_verbosity(verbosity)


def _distribution(dimension: Dimension, taken: Sequence[Any]) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if dimension.low is not None and dimension.high is not None:
        return FloatDistribution(float(dimension.low), float(dimension.high), log=dimension.log)
    return CategoricalDistribution(sorted(set(dimension.choices or dimension.variants or taken), key=repr))
