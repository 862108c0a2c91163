"""One sweep in its storage: created, found again, filled with the points it shall try."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amsd.errors import UsageError
from amsd.files import write_json
from amsd.sweep import optuna_access as names
from amsd.sweep.plan import Plan, restore_plan
from amsd.sweep.points import points_to_queue
from amsd.sweep.space import experimental, pruner, sampler
from amsd.sweep.storage import default_url, open_storage, without_password

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

#: Written into the sweep's folder: where its study is.
POINTER = "sweep.json"


@dataclass(frozen=True)
class StudyHandle:
    """An open study and what belongs to it."""

    study: Study
    trials: names.TrialTable
    url: str
    directory: Path
    plan: Plan

    def stop_reason(self) -> str | None:
        """Why the sweep stopped by itself, if it did."""
        reason: str | None = self.study.user_attrs.get(names.STOP)
        return reason

    def stop(self, reason: str | None) -> None:
        """Tell every worker to take no further trial (None: to go on again)."""
        self.study.set_user_attr(names.STOP, reason)


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
    started = names.started(storage, sweep.name)
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
    experimental(study.set_metric_names, [objective.label for objective in sweep.objective])
    handle = StudyHandle(study, names.TrialTable.of(study, storage), url, directory.resolve(), plan)
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
    opened = optuna.load_study(study_name=study, storage=storage)
    facts = opened.user_attrs
    plan = restore_plan(facts[names.PLAN])
    opened.sampler = sampler(plan, uuid.uuid4().hex)  # workers that join must not all draw the same points
    opened.pruner = pruner(plan)
    folder = (directory or Path(facts[names.DIRECTORY])).resolve()
    return StudyHandle(opened, names.TrialTable.of(opened, storage), url, folder, plan)


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
