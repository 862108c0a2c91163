"""What lies in a run directory, read into frozen values.

A run that is still going, or that died, is read as far as it goes: whatever is missing or unreadable becomes a
sentence in `Run.gaps`, which the page shows. Nothing here imports torch.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amsd.errors import AmsdError, UsageError
from amsd.recipe import Recipe, from_dict
from amsd.recipe.load import read_toml
from amsd.report.evaluations import Evaluation, read_evaluation, read_evaluation_line
from amsd.run_directory import RunDirectory

_SAMPLE = re.compile(r"p(\d+)-s(\d+)\.png")
#: Keys of a metrics line that are not curves.
_NOT_CURVES = ("step", "time")
#: Notices that say how a run ended before its last step.
_ENDS = ("failed", "interrupted")


@dataclass(frozen=True)
class Curve:
    """One logged scalar; `steps` ascend and every value is finite."""

    steps: tuple[int, ...]
    values: tuple[float, ...]
    not_finite: int = 0
    """Logged values left out because they were NaN or infinite."""


@dataclass(frozen=True)
class Notice:
    """An alarm or a warning of the run."""

    kind: str
    text: str
    step: int


#: Pictures by prompt index and sample index.
Samples = Mapping[tuple[int, int], Path]


@dataclass(frozen=True)
class Checkpoint:
    """What is known of the model after `step` updates; its weights may have been deleted since."""

    step: int
    evaluations: Mapping[str, Evaluation]
    """By name of the evaluation setting."""
    samples: Mapping[str, Samples]
    """By name of the evaluation setting."""
    on_disk: bool
    labels: tuple[str, ...] = ()
    """`best`, `latest`."""


@dataclass(frozen=True)
class Run:
    """One run directory."""

    path: Path
    recipe: Recipe | None
    base: Checkpoint
    """The unchanged model (step 0)."""
    checkpoints: tuple[Checkpoint, ...]
    """Those with a folder, an evaluation or pictures, by ascending step."""
    curves: Mapping[str, Curve]
    notices: tuple[Notice, ...]
    gaps: tuple[str, ...]
    """What is missing, in sentences."""
    last_time: float | None = None
    """Unix time of the last logged step, seconds."""
    settings: tuple[str, ...] = ()
    """Evaluation settings that occur; those of the recipe first, in its order."""

    @property
    def last_step(self) -> int:
        """Last optimizer step that was logged; 0 if none was."""
        return max((curve.steps[-1] for curve in self.curves.values() if curve.steps), default=0)

    @property
    def finished(self) -> bool:
        """Whether the recipe's last step was reached."""
        return self.recipe is not None and self.last_step >= self.recipe.training.steps


@dataclass
class _Log:
    """What metrics.jsonl says."""

    curves: dict[str, dict[int, float]] = field(default_factory=dict)
    evaluations: dict[int, dict[str, Evaluation]] = field(default_factory=dict)
    notices: list[Notice] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)
    last_time: float | None = None


def is_run(path: Path) -> bool:
    """Whether a folder looks like a run directory."""
    run = RunDirectory(path)
    return run.recipe.is_file() or run.metrics.is_file() or run.checkpoints.is_dir()


def load_run(path: Path) -> Run:
    """Read a run directory.

    Raises:
        UsageError: nothing of a run is there.
    """
    if not is_run(path):
        raise UsageError(f"{path}: neither a run nor a sweep (no recipe.toml, metrics.jsonl or checkpoints there)")
    folder = RunDirectory(path)
    gaps: list[str] = []
    recipe = _recipe(folder.recipe, gaps)
    log = _log(folder.metrics)
    gaps += log.gaps
    unchanged = {**log.evaluations.get(0, {}), **_evaluations(folder.base_evaluation, gaps)}
    base = Checkpoint(0, unchanged, _samples(folder.base_samples), on_disk=True)
    checkpoints = _checkpoints(folder, log, gaps)
    run = Run(
        path=path,
        recipe=recipe,
        base=base,
        checkpoints=checkpoints,
        curves={name: _curve(points) for name, points in log.curves.items()},
        notices=tuple(log.notices),
        gaps=(),
        last_time=log.last_time,
        settings=_settings(recipe, base, checkpoints),
    )
    return Run(**{**vars(run), "gaps": (*gaps, *_missing(run))})


def _recipe(file: Path, gaps: list[str]) -> Recipe | None:
    if not file.is_file():
        gaps.append("recipe.toml is missing: the settings of the run are unknown.")
        return None
    try:
        return from_dict(read_toml(file), source=file.name)
    except AmsdError as error:
        gaps.append(f"recipe.toml cannot be read by this version of amsd: {error}")
        return None


def _log(file: Path) -> _Log:
    log = _Log()
    if not file.is_file():
        log.gaps.append("metrics.jsonl is missing: there are no learning curves.")
        return log
    broken = 0
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError:
            broken += 1
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            _take(log, entry)
        else:
            broken += 1
    if broken:
        log.gaps.append(f"{broken} line{'s' * (broken > 1)} of metrics.jsonl cannot be read (cut off while written).")
    return log


def _take(log: _Log, entry: dict[str, Any]) -> None:
    step: int = entry["step"]
    if "notice" in entry:
        notice = Notice(str(entry["notice"]), str(entry.get("text", "")), step)
        if notice not in log.notices:  # said again after a resume
            log.notices.append(notice)
        return
    if "evaluation" in entry:
        found = read_evaluation_line(entry)
        log.evaluations.setdefault(step, {})[found.setting] = found
        return
    if isinstance(entry.get("time"), (int, float)):
        log.last_time = float(entry["time"])
    for name, value in entry.items():
        if value is None and name not in _NOT_CURVES:  # how the log writes NaN and infinity
            log.curves.setdefault(name, {})[step] = math.nan
        elif name not in _NOT_CURVES and isinstance(value, (int, float)) and not isinstance(value, bool):
            # A resumed run logs some steps again: the later line is the one that the weights went through.
            log.curves.setdefault(name, {})[step] = float(value)


def _curve(points: Mapping[int, float]) -> Curve:
    kept = [(step, value) for step, value in sorted(points.items()) if math.isfinite(value)]
    return Curve(tuple(step for step, _ in kept), tuple(value for _, value in kept), len(points) - len(kept))


def _checkpoints(folder: RunDirectory, log: _Log, gaps: list[str]) -> tuple[Checkpoint, ...]:
    on_disk, left = set(folder.steps()), set(folder.left_steps())
    pointers = {name: folder.pointer(name) for name in ("best", "latest")}
    found = []
    for step in sorted((on_disk | left | set(log.evaluations)) - {0}):
        place = folder.checkpoint(step)
        files = {
            **_evaluations(folder.left_evaluation(step), gaps),
            **_evaluations(place / "evaluation", gaps),
        }
        samples = {**_samples(folder.left_samples(step)), **_samples(place / "samples")}
        labels = tuple(name for name, target in pointers.items() if target is not None and target == place)
        evaluations = {**log.evaluations.get(step, {}), **files}
        found.append(Checkpoint(step, evaluations, samples, step in on_disk, labels))
    return tuple(found)


def _evaluations(folder: Path, gaps: list[str]) -> dict[str, Evaluation]:
    found = {}
    for file in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        try:
            found[file.stem] = read_evaluation(file)
        except (OSError, ValueError, KeyError, TypeError) as error:
            gaps.append(f"{file.parent.parent.name}/{file.parent.name}/{file.name} cannot be read ({error!r}).")
    return found


def _samples(folder: Path) -> dict[str, Samples]:
    if not folder.is_dir():
        return {}
    found = {place.name: dict(_pictures(place)) for place in sorted(folder.iterdir()) if place.is_dir()}
    return {name: pictures for name, pictures in found.items() if pictures}


def _pictures(folder: Path) -> Iterator[tuple[tuple[int, int], Path]]:
    for file in sorted(folder.glob("p*-s*.png")):
        match = _SAMPLE.fullmatch(file.name)
        if match:
            yield (int(match[1]), int(match[2])), file


def _settings(recipe: Recipe | None, base: Checkpoint, checkpoints: tuple[Checkpoint, ...]) -> tuple[str, ...]:
    occurring = {name for point in (base, *checkpoints) for name in (*point.evaluations, *point.samples)}
    planned = [setting.name for setting in recipe.evaluation_settings] if recipe else []
    return tuple([name for name in planned if name in occurring] + sorted(occurring - set(planned)))


def _missing(run: Run) -> list[str]:
    """Sentences on what a complete run would have."""
    said = []
    if run.recipe is not None and not run.finished:
        ends = [notice.kind for notice in run.notices if notice.kind in _ENDS]
        state = f"The run {ends[-1]}" if ends[-1:] == ["failed"] else "The run was interrupted" if ends else ""
        state = state or "The run is still going or stopped without a word"
        said.append(f"{state}: step {run.last_step} of {run.recipe.training.steps}.")
    if not run.base.evaluations:
        said.append("The base model has no evaluation here: differences to it are unknown.")
    if not any(point.evaluations for point in run.checkpoints):
        said.append("No checkpoint has been evaluated yet.")
    silent = [point.step for point in run.checkpoints if not point.evaluations]
    if silent and len(silent) < len(run.checkpoints):
        said.append(f"Not evaluated: the checkpoint{'s' * (len(silent) > 1)} of step {', '.join(map(str, silent))}.")
    lost = {name: curve.not_finite for name, curve in run.curves.items() if curve.not_finite}
    if lost:
        text = ", ".join(f"{name} ({count})" for name, count in sorted(lost.items()))
        said.append(f"Logged values that are not finite were left out of the curves: {text}.")
    return said
