"""Which of Optuna's samplers searches a space, and where its random numbers come from."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from amsd.sweep.plan import SweepPlan
from amsd.sweep.schema import SearchSampler
from amsd.sweep.space import experimental


def sampler(plan: SweepPlan) -> BaseSampler:
    """The sampler that the sweep names; with a seed, a trial's draws follow from the seed and its number alone.

    A grid is queued point by point, so its sampler is never asked.
    """
    chosen = plan.sweep.sampler
    return _built(chosen, None) if chosen.seed is None else SeededByTrial(chosen, chosen.seed)


class SeededByTrial(BaseSampler):
    """A sampler of Optuna that is built anew for each trial, seeded by the sweep's seed and the trial's number.

    Optuna's own samplers take one seed per process. Then workers with one seed all draw the same points, and a sweep
    that goes on draws its first points again. Here two sweeps with one seed propose the same points, whoever draws
    them and however often the sweep was interrupted, as far as the sampler has seen the same results.
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

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """As the sampler of the trial."""
        self._of(trial).before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As the sampler of the trial."""
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: Mapping[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As the sampler of the trial."""
        return self._of(trial).sample_relative(study, trial, dict(search_space))

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """As the sampler of the trial."""
        return self._of(trial).sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """As the sampler of the trial."""
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
