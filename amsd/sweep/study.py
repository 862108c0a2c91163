"""One sweep in its storage: created, found again, filled with the points it shall try."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amsd.errors import UsageError
from amsd.files import write_json
from amsd.reading import parsed, parsed_object
from amsd.sweep import optuna_access as names
from amsd.sweep.load import code_in, load_plan, require_format, restore_plan
from amsd.sweep.schema import FORMAT, SweepPlan
from amsd.sweep.storage import default_url, is_storage, open_storage, sqlite_path
from amsd.sweep.trial import points_to_queue
from amsd.urls import printable

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

#: Written into the sweep's folder: where its study is, and the plan that a worker of this folder may trust.
POINTER, PLAN_FILE = "sweep.json", "plan.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudyHandle:
    """An open study and what belongs to it."""

    study: Study
    trials: names.TrialTable
    url: str
    directory: Path
    plan: SweepPlan

    def stop_reason(self) -> str | None:
        """Why the sweep stopped by itself, if it did."""
        reason: str | None = self.study.user_attrs.get(names.STOP)
        return reason

    def stop(self, reason: str | None) -> None:
        """Tell every worker to take no further trial (None: to go on again)."""
        self.study.set_user_attr(names.STOP, reason)


def create(plan: SweepPlan, directory: Path, url: str | None = None) -> StudyHandle:
    """Open the sweep's study, made now or earlier, and queue the points that its budget names.

    Raises:
        UsageError: the storage holds another sweep of this name, or the folder one of another name.
    """
    import optuna

    from amsd.sweep.algorithms import experimental, pruner, sampler

    _check_folder(plan, directory)
    directory.mkdir(parents=True, exist_ok=True)
    url = url or default_url(directory)
    storage = open_storage(url)
    sweep = plan.sweep
    directions = [objective.direction for objective in sweep.objective]
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=storage, study_name=sweep.name, directions=directions, load_if_exists=True,
        sampler=sampler(plan), pruner=pruner(plan),
    )  # fmt: skip
    earlier = study.user_attrs.get(names.PLAN)
    if earlier is not None:
        _check_same(plan, earlier, url)
        _explain_changes(plan, earlier)
        plan = replace(plan, older="format" not in earlier)
    study.set_user_attr(names.PLAN, plan.dump())
    study.set_user_attr(names.DIRECTORY, str(directory.resolve()))
    experimental(study.set_metric_names, [objective.label for objective in sweep.objective])
    handle = StudyHandle(study, names.TrialTable.of(study, storage), url, directory.resolve(), plan)
    handle.stop(None)
    write_json(directory / POINTER, {"format": FORMAT, "storage": printable(url), "study": sweep.name})
    write_json(directory / PLAN_FILE, plan.dump())
    _queue(handle)
    return handle


def locate(source: str, study: str | None = None, directory: Path | None = None) -> StudyHandle:
    """Open an existing study to read it: `source` is the sweep's folder or a storage URL.

    Raises:
        UsageError: there is no sweep there, or several and no name was given.
    """
    import optuna

    from amsd.sweep.algorithms import pruner, sampler

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = source
    if _is_folder(source):
        url, study = _pointed(Path(source), study)
        directory = directory or Path(source)
    storage = open_storage(url)
    present = [frozen.study_name for frozen in storage.get_all_studies() if names.PLAN in frozen.user_attrs]
    if study is None and len(present) == 1:
        study = present[0]
    if study not in present:
        asked = f"no sweep {study!r}" if study else "no single sweep" if present else "no sweep"
        raise UsageError(f"{printable(url)}: {asked} there. Sweeps: {', '.join(present) or 'none'}.")
    opened = optuna.load_study(study_name=study, storage=storage)
    facts = opened.user_attrs
    plan = restore_plan(facts[names.PLAN], f"sweep {study!r} in {printable(url)}")
    opened.sampler = sampler(plan)
    opened.pruner = pruner(plan)
    folder = (directory or Path(str(facts.get(names.DIRECTORY, "")))).resolve()
    return StudyHandle(opened, names.TrialTable.of(opened, storage), url, folder, plan)


@dataclass(frozen=True)
class Consent:
    """What the user of a worker allows. Nothing that a storage names is run without it."""

    sweep: str | None = None
    """A sweep file of the user's own."""
    command: tuple[str, ...] | None = None
    """What runs a trial, as the user wrote it on the command line."""
    allow_code: bool = False
    """Whether `python:` scorers and pickles that only the storage names may be loaded."""


def join(
    source: str, study: str | None = None, directory: Path | None = None, consent: Consent | None = None
) -> StudyHandle:
    """Open an existing study to work on it.

    A storage is data: whoever can write to it must not thereby run commands here. Commands and code are taken from the
    user's command line, from the user's sweep file, or from the plan in the folder that the user names.

    Raises:
        UsageError: as `locate`; the storage names a command, code or a folder that the user has not named.
    """
    consent = consent or Consent()
    handle = locate(source, study, directory)
    named = directory or (Path(source) if _is_folder(source) else None)
    if named is None and not _is_folder_of(handle):
        raise UsageError(
            f"{printable(handle.url)} names the folder {handle.directory}, which is not this sweep's folder on this "
            "machine. Give a folder for the trials with --directory (a new one is fine)."
        )
    own = load_plan(consent.sweep) if consent.sweep is not None else _plan_in(named)
    where, asked = printable(handle.url), handle.plan.sweep.execution.command
    if own is not None:
        _check_same(own, handle.plan.dump(), handle.url)
    elif (code := code_in(handle.plan.dump())) and not consent.allow_code:
        raise UsageError(f"{where} names code for its trials ({', '.join(code)}). {_OWN}, or add --allow-code.")
    command = consent.command or (own.sweep.execution.command if own is not None else None)
    if asked is not None and command is None:
        raise UsageError(f"{where} names a command for its trials ({' '.join(asked)}), and a storage may not. {_OWN}, "
                         "or write the command yourself with --command.")  # fmt: skip
    execution = handle.plan.sweep.execution.model_copy(update={"command": command})
    sweep = handle.plan.sweep.model_copy(update={"execution": execution})
    return replace(handle, plan=replace(handle.plan, sweep=sweep))


_OWN = f"Name the sweep's folder with its {PLAN_FILE} (--directory) or your own sweep file (--sweep)"


def _is_folder(source: str) -> bool:
    """Whether this names a folder (there or not) rather than a storage, however malformed its URL may be."""
    return not is_storage(source) and (":" not in source or Path(source).exists())


def _is_folder_of(handle: StudyHandle) -> bool:
    try:
        return _pointed(handle.directory, None)[1] == handle.study.study_name
    except UsageError:
        return False


def _plan_in(folder: Path | None) -> SweepPlan | None:
    """The plan that `create` wrote into a folder; None where there is none."""
    if folder is None or not (folder / PLAN_FILE).is_file():
        return None
    try:
        data = parsed((folder / PLAN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder / PLAN_FILE}: cannot be read: {error}") from None
    return restore_plan(data, str(folder / PLAN_FILE))


def _pointed(folder: Path, study: str | None) -> tuple[str, str]:
    """Storage and name of the study of a folder, which may have been moved since."""
    try:
        pointer = parsed_object((folder / POINTER).read_text(encoding="utf-8"))
        require_format(pointer.get("format", FORMAT), str(folder / POINTER))
        url, name = str(pointer["storage"]), str(pointer["study"])
    except (OSError, ValueError, KeyError):
        shown = folder if folder.exists() else printable(str(folder))
        raise UsageError(f"{shown}: not a sweep's folder ({POINTER} is missing or damaged)") from None
    if url.startswith("sqlite:///") and not sqlite_path(url)[0].exists() and (folder / "study.db").is_file():
        url = default_url(folder)
    return url, study or name


def _check_folder(plan: SweepPlan, directory: Path) -> None:
    """Check that a folder is new or this sweep's: two sweeps in one would be read as the later."""
    try:
        held = parsed_object((directory / POINTER).read_text(encoding="utf-8")).get("study")
    except (OSError, ValueError):
        return
    if held not in (None, plan.sweep.name):
        raise UsageError(
            f"{directory} holds the sweep {held!r}, and this one is called {plan.sweep.name!r} (without a name of its "
            f"own, a sweep has the name of its file). Choose another --output, or continue that one: --set name={held}."
        )


def _check_same(plan: SweepPlan, earlier: dict[str, Any], url: str) -> None:
    """A study may go on with another budget, machinery or description, not with another question."""
    mine, keys = plan.dump(), ("search", "override", "recipe", "seeds", "objective", "constraint", "first")
    differing = [repr(key) for key in keys if mine["sweep"].get(key) != earlier["sweep"].get(key)]
    if mine["recipe"] != earlier["recipe"]:
        differing.append("base recipe")
    if differing:
        raise UsageError(
            f"{printable(url)} already holds a sweep {plan.sweep.name!r} whose {differing[0]} differs. "
            "Give this one another name (--set name=...) or another --output."
        )


def _explain_changes(plan: SweepPlan, earlier: dict[str, Any]) -> None:
    """Another sampler or pruner may take over, which is said; but a grid's points are queued once, at its start.

    Raises:
        UsageError: a study that was (or shall become) a grid.
    """
    before = restore_plan(earlier).sweep
    for section in ("sampler", "pruner"):
        old, new = getattr(before, section), getattr(plan.sweep, section)
        if section == "sampler" and old.name != new.name and "grid" in (old.name, new.name):
            raise UsageError(
                f"sweep {plan.sweep.name!r} was started with sampler {old.name!r} and cannot go on with {new.name!r}: "
                "the points of a grid are queued at its start. Give this one another name (--set name=...)."
            )
        if old != new:
            changed = ", ".join(f"{key} = {value}" for key, value in new.model_dump(exclude_unset=True).items())
            logger.warning("Sweep %s goes on with another %s: %s (it was %r). Trials that have ended stay as they are.",
                           plan.sweep.name, section, changed or new.name, old.name)  # fmt: skip


def _queue(handle: StudyHandle) -> None:
    """Queue the points that are known beforehand, once: what is there already is skipped, so this may be repeated."""
    points = points_to_queue(handle.plan)
    present = len(counted(handle.study))
    for point in points[present:]:
        handle.study.enqueue_trial(point)


def counted(study: Study) -> list[FrozenTrial]:
    """The trials of a sweep, without surplus ones."""
    return [trial for trial in study.get_trials(deepcopy=False) if names.SURPLUS not in trial.user_attrs]
