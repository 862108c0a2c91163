"""One sweep in its storage: created, found again, filled with the points it shall try."""

from __future__ import annotations

import json
import uuid
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amsd.errors import UsageError
from amsd.files import write_json
from amsd.sweep import attributes as names
from amsd.sweep.load import Plan, restore_plan
from amsd.sweep.space import grid
from amsd.sweep.storage import default_url, open_storage, without_password

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from optuna.study import Study
    from optuna.trial import FrozenTrial

#: Written into the sweep's folder: where its study is.
POINTER = "sweep.json"


@dataclass(frozen=True)
class StudyHandle:
    """An open study and what belongs to it."""

    study: Study
    storage: BaseStorage
    study_id: int
    url: str
    directory: Path
    plan: Plan

    def stop_reason(self) -> str | None:
        """Why the sweep stopped by itself, if it did."""
        reason: str | None = self.storage.get_study_user_attrs(self.study_id).get(names.STOP)
        return reason

    def stop(self, reason: str | None) -> None:
        """Tell every worker to take no further trial (None: to go on again)."""
        self.storage.set_study_user_attr(self.study_id, names.STOP, reason)


def create(plan: Plan, directory: Path, url: str | None = None) -> StudyHandle:
    """Open the sweep's study, made now or earlier, and queue the points that its budget names.

    Raises:
        UsageError: the storage holds another sweep of this name.
    """
    import optuna

    directory.mkdir(parents=True, exist_ok=True)
    url = url or default_url(directory)
    storage = open_storage(url)
    sweep = plan.sweep
    # A study that goes on must not draw its first points again: they would only be recognised as copies.
    started = _started(storage, sweep.name)
    directions = [objective.direction for objective in sweep.objective]
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=storage, study_name=sweep.name, directions=directions, load_if_exists=True,
        sampler=sampler(plan, str(started)), pruner=pruner(plan),
    )  # fmt: skip
    earlier = study.user_attrs.get(names.PLAN)
    if earlier is not None:
        _check_same(plan, earlier, url)
    study.set_user_attr(names.PLAN, plan.dump())
    study.set_user_attr(names.DIRECTORY, str(directory.resolve()))
    _experimental(study.set_metric_names, [objective.label for objective in sweep.objective])
    handle = StudyHandle(study, storage, storage.get_study_id_from_name(sweep.name), url, directory.resolve(), plan)
    handle.stop(None)
    write_json(directory / POINTER, {"storage": without_password(url), "study": sweep.name})
    _queue(handle)
    return handle


def locate(source: str, study: str | None = None, directory: Path | None = None) -> StudyHandle:
    """Open an existing study: `source` is the sweep's folder or a storage URL.

    Raises:
        UsageError: there is no sweep there, or several and no name was given.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = source
    if ":" not in source or Path(source).is_dir():
        url, study = _pointed(Path(source), study)
    storage = open_storage(url)
    present = [frozen.study_name for frozen in storage.get_all_studies() if names.PLAN in frozen.user_attrs]
    if study is None and len(present) == 1:
        study = present[0]
    if study not in present:
        asked = f"no sweep {study!r}" if study else "no single sweep" if present else "no sweep"
        raise UsageError(f"{without_password(url)}: {asked} there. Sweeps: {', '.join(present) or 'none'}.")
    study_id = storage.get_study_id_from_name(study)
    facts = storage.get_study_user_attrs(study_id)
    plan = restore_plan(facts[names.PLAN])
    drawn = sampler(plan, uuid.uuid4().hex)  # workers that join must not all draw the same points
    opened = optuna.load_study(study_name=study, storage=storage, sampler=drawn, pruner=pruner(plan))
    return StudyHandle(opened, storage, study_id, url, (directory or Path(facts[names.DIRECTORY])).resolve(), plan)


def _pointed(folder: Path, study: str | None) -> tuple[str, str]:
    try:
        pointer = json.loads((folder / POINTER).read_text(encoding="utf-8"))
        return pointer["storage"], study or pointer["study"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{folder}: not a sweep's folder ({POINTER} is missing or damaged)") from None


def _check_same(plan: Plan, earlier: dict[str, Any], url: str) -> None:
    """A study may go on with another budget, machinery or description, not with another question."""
    mine = plan.dump()
    for key in ("search", "override", "recipe", "seeds", "objective", "constraint"):
        if mine["sweep"].get(key) != earlier["sweep"].get(key):
            raise UsageError(
                f"{without_password(url)} already holds a sweep {plan.sweep.name!r} whose {key!r} differs. "
                "Give this one another name (--set name=...) or another --output."
            )
    if mine["recipe"] != earlier["recipe"]:
        raise UsageError(
            f"{without_password(url)} already holds a sweep {plan.sweep.name!r} whose base recipe differs. "
            "Give this one another name (--set name=...) or another --output."
        )


def _queue(handle: StudyHandle) -> None:
    """Queue the points that are known beforehand, once: what is there already is skipped, so this may be repeated."""
    points = points_to_queue(handle.plan)
    present = len(counted(handle.study))
    for point in points[present:]:
        handle.study.enqueue_trial(point)


def counted(study: Study) -> list[FrozenTrial]:
    """The trials of a sweep, without surplus ones."""
    return [trial for trial in study.get_trials(deepcopy=False) if names.SURPLUS not in trial.user_attrs]


def points_to_queue(plan: Plan) -> list[dict[str, Any]]:
    """First points, then the grid, up to the budget of trials; every other point is made when a worker is free for it.

    (Hundreds of waiting trials would be read again at every step: finished ones are cached, these are not.)
    """
    sweep = plan.sweep
    points = [dict(point) for point in sweep.first]
    if sweep.sampler.name == "grid":
        points += [point for point in grid(sweep) if point not in points]
    return points[: sweep.budget.trials]


def _started(storage: BaseStorage, name: str) -> int:
    from optuna.trial import TrialState

    known = {frozen.study_name: frozen._study_id for frozen in storage.get_all_studies()}
    states = tuple(state for state in TrialState if state != TrialState.WAITING)
    return storage.get_n_trials(known[name], states) if name in known else 0


def sampler(plan: Plan, salt: str) -> BaseSampler:
    """Optuna's sampler of this name; `salt` varies its seed (not that of QMC, whose workers share one sequence).

    A grid is queued point by point, so its sampler is never asked.
    """
    import optuna

    chosen = plan.sweep.sampler
    seed = None if chosen.seed is None else zlib.crc32(f"{chosen.seed}:{salt}".encode())
    match chosen.name:
        case "tpe":
            # constant_liar: parallel workers keep away from what is being tried.
            return _sampler(
                optuna.samplers.TPESampler,
                seed=seed, n_startup_trials=chosen.startup_trials, multivariate=True, group=True,
                constant_liar=True,
            )  # fmt: skip
        case "gp":
            return _sampler(optuna.samplers.GPSampler, seed=seed, n_startup_trials=chosen.startup_trials)
        case "qmc":
            return _sampler(
                optuna.samplers.QMCSampler, seed=chosen.seed, scramble=True, warn_independent_sampling=False
            )
        case "nsga2":
            return optuna.samplers.NSGAIISampler(seed=seed)
        case "random" | "grid":
            return optuna.samplers.RandomSampler(seed=seed)


def _sampler(kind: Callable[..., BaseSampler], **options: Any) -> BaseSampler:
    built: BaseSampler = _experimental(kind, **options)
    return built


def _experimental(call: Any, *args: Any, **options: Any) -> Any:
    """Call something of Optuna without its notice that the interface may change."""
    import warnings

    from optuna.exceptions import ExperimentalWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return call(*args, **options)


def pruner(plan: Plan) -> BasePruner:
    """Optuna's pruner of this name; steps are optimizer steps, the seeds of a point one after the other."""
    import optuna

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
