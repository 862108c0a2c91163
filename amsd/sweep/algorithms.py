"""Optuna's algorithms: its samplers and pruners by the names of a sweep file, and the importance of a searched key."""

from __future__ import annotations

import random
import statistics
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from typing_extensions import override

from amsd.sweep.schema import SearchSampler, SweepPlan
from amsd.sweep.search import Dimension

MIN_TRIALS = 12
"""Complete trials below which importance says nothing: a share of fewer is chance."""
_REPETITIONS = 24


def sampler(plan: SweepPlan) -> BaseSampler:
    """The sampler that the sweep names; with a seed, a trial's draws follow from the seed and its number alone.

    A grid is queued point by point, so its sampler is never asked.
    """
    chosen = plan.sweep.sampler
    return _built(chosen, None) if chosen.seed is None else SeededByTrial(chosen, chosen.seed)


class SeededByTrial(BaseSampler):
    """A sampler of Optuna that is built anew for each trial, seeded by the sweep's seed and the trial's number.

    Optuna's own samplers take one seed per process. Then workers with one seed all draw the same points, and a sweep
    that goes on draws its first points again. Here two sweeps with one seed propose the same points, however
    often they were interrupted, if the sampler saw the same results. `random` looks at no results, so any number of
    workers gives the same points. QMC takes the next point of one sequence, so there the order of the trials counts.
    """

    def __init__(self, chosen: SearchSampler, seed: int) -> None:
        """A sampler of the kind `chosen`."""
        self._chosen = chosen
        self._seed = seed
        self._number = -1
        self._own = _built(chosen, seed)

    def _of(self, trial: FrozenTrial) -> BaseSampler:
        """The sampler of this trial."""
        if trial.number != self._number:
            self._own = _built(self._chosen, zlib.crc32(f"{self._seed}:{trial.number}".encode()))
            self._number = trial.number
        return self._own

    def reseed_rng(self) -> None:
        """Does nothing: seeds follow from the numbers of trials, in every thread and process."""

    @override
    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._of(trial).before_trial(study, trial)

    @override
    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._of(trial).infer_relative_search_space(study, trial)

    @override
    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: Mapping[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._of(trial).sample_relative(study, trial, dict(search_space))

    @override
    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._of(trial).sample_independent(study, trial, param_name, param_distribution)

    @override
    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._of(trial).after_trial(study, trial, state, values)


def _built(chosen: SearchSampler, seed: int | None) -> BaseSampler:
    """Optuna's sampler of this name; the points of QMC are one sequence, whose seed is that of the sweep."""
    samplers = optuna.samplers
    match chosen.name:
        case "tpe":
            # constant_liar: parallel workers keep away from what is being tried.
            return _quietly(
                samplers.TPESampler,
                seed=seed, n_startup_trials=chosen.startup_trials, multivariate=True, group=True,
                constant_liar=True,
            )  # fmt: skip
        case "gp":
            return _quietly(samplers.GPSampler, seed=seed, n_startup_trials=chosen.startup_trials)
        case "qmc":
            return _quietly(
                samplers.QMCSampler, seed=chosen.seed, scramble=True, warn_independent_sampling=False,
                independent_sampler=samplers.RandomSampler(seed=seed),
            )  # fmt: skip
        case "nsga2":
            return samplers.NSGAIISampler(seed=seed)
        case "random" | "grid":
            return samplers.RandomSampler(seed=seed)


def _quietly(kind: Callable[..., BaseSampler], **options: Any) -> BaseSampler:
    built: BaseSampler = experimental(kind, **options)
    return built


def experimental(call: Any, *args: Any, **options: Any) -> Any:
    """Call something of Optuna without its notice that the interface may change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return call(*args, **options)


def pruner(plan: SweepPlan) -> BasePruner:
    """Optuna's pruner of this name; steps are optimizer steps, the seeds of a point one after the other."""
    chosen, training = plan.sweep.pruner, plan.recipe.training
    options = {"n_startup_trials": chosen.startup_trials, "n_warmup_steps": chosen.warmup_steps}
    match chosen.name:
        case "none":
            return optuna.pruners.NopPruner()
        case "median":
            return optuna.pruners.MedianPruner(**options)
        case "percentile":
            return optuna.pruners.PercentilePruner(chosen.percentile, **options)
        case "hyperband":
            longest = training.steps * len(plan.sweep.seeds)
            shortest = min(max(training.checkpoint_every, chosen.warmup_steps, 1), longest)
            return optuna.pruners.HyperbandPruner(min_resource=shortest, max_resource=longest)


def importance(
    search: Mapping[str, Dimension], points: Sequence[Mapping[str, Any]], values: Sequence[float], maximize: bool
) -> dict[str, tuple[float, float]]:
    """Share of the variation among good trials that each key explains (PED-ANOVA), and its standard error.

    Mean and spread over bootstrap samples of the trials. Only keys that every trial has and that took several values
    are compared. Empty below `MIN_TRIALS` trials, or where no key can be compared.
    """
    if len(points) < MIN_TRIALS or not (keys := _varied(search, points)):
        return {}
    chance = random.Random(0)
    found: dict[str, list[float]] = {name: [] for name in keys}
    for _ in range(_REPETITIONS):
        drawn = [chance.randrange(len(points)) for _ in points]
        sample = _shares(keys, [points[index] for index in drawn], [values[index] for index in drawn], maximize)
        for name in keys:
            found[name].append(sample.get(name, 0.0))
    return {name: (statistics.fmean(each), statistics.stdev(each)) for name, each in found.items()}


def _varied(search: Mapping[str, Dimension], points: Sequence[Mapping[str, Any]]) -> dict[str, BaseDistribution]:
    """Distributions of the keys that can be compared."""
    taken = {name: [point[name] for point in points] for name in search if all(name in point for point in points)}
    return {name: _distribution(search[name], each) for name, each in taken.items() if len({*map(repr, each)}) > 1}


def _shares(
    keys: Mapping[str, BaseDistribution],
    points: Sequence[Mapping[str, Any]],
    values: Sequence[float],
    maximize: bool,
) -> Mapping[str, float]:
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study()
        study.add_trials(
            [
                optuna.create_trial(
                    params={name: point[name] for name in keys},
                    distributions=dict(keys),
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
    if dimension.low is not None and dimension.high is not None:
        return FloatDistribution(float(dimension.low), float(dimension.high), log=dimension.log)
    return CategoricalDistribution(sorted(set(dimension.choices or dimension.variants or taken), key=repr))
