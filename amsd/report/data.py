"""What lies in a run directory, read into frozen values.

A run that is still going, or that died, is read as far as it goes: whatever is missing or unreadable becomes a
sentence in `Run.gaps`, which the page shows. Nothing here imports torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from amsd.errors import AmsdError, UsageError
from amsd.evaluation.result import EvaluationResult, Metric, Paired
from amsd.recipe import Recipe
from amsd.recipe.load import read_run as read_recipe
from amsd.report.numbers import counted
from amsd.report.series import Found, Series, named, sort
from amsd.run_directory import RunDirectory
from amsd.tracking.log import ENDINGS, Log, LogEntry, read_log
from amsd.training.events import Notice

_SAMPLE = re.compile(r"p([0-9]{1,9})-s([0-9]{1,9})\.png")
_EVALUATED = "eval/"
#: What may follow a metric's name in a key of a line of the log.
_PARTS = ("standard_error", "difference", "difference_standard_error", "p_value")


@dataclass(frozen=True)
class Curve:
    """One logged scalar; `steps` ascend and every value is finite."""

    steps: tuple[int, ...]
    values: tuple[float, ...]
    not_finite: int = 0
    """Logged values left out because they were NaN or infinite."""


#: Pictures by prompt index and sample index.
Samples = Mapping[tuple[int, int], Path]


@dataclass(frozen=True)
class Checkpoint:
    """What is known of the model after `step` updates; its weights may have been deleted since."""

    step: int
    evaluations: Mapping[str, EvaluationResult]
    """By name of the series (the evaluation setting, and what tells series of one setting apart)."""
    samples: Mapping[str, Samples]
    """By name of the series."""
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
    address: str = ""
    """Of its W&B run; empty where it has none or was offline."""
    series: Mapping[str, Series] = field(default_factory=dict)
    """By name; settings of the recipe first, in its order."""

    @property
    def settings(self) -> tuple[str, ...]:
        """Names of the series."""
        return tuple(self.series)

    @property
    def last_step(self) -> int:
        """Last optimizer step that was logged; 0 if none was."""
        return max((curve.steps[-1] for curve in self.curves.values() if curve.steps), default=0)

    @property
    def finished(self) -> bool:
        """Whether the recipe's last step was reached."""
        return self.recipe is not None and self.last_step >= self.recipe.training.steps


def is_run(path: Path) -> bool:
    """Whether a folder looks like a run directory."""
    run = RunDirectory(path)
    return run.recipe.is_file() or run.metrics.is_file() or run.checkpoints.is_dir()


def load_run(path: Path | str) -> Run:
    """Read a run directory.

    Raises:
        UsageError: nothing of a run is there.
    """
    return named_together([read_run(Path(path))])[0]


def named_together(runs: Sequence[Run]) -> list[Run]:
    """The runs with names of their series that tell different conditions apart, within a run and between runs."""
    names = named([run.series for run in runs])
    return [
        replace(
            run,
            base=_renamed(run.base, names),
            checkpoints=tuple(_renamed(point, names) for point in run.checkpoints),
            series={names[name]: replace(series, name=names[name]) for name, series in run.series.items()},
        )
        for run in runs
    ]


def _renamed(point: Checkpoint, names: Mapping[str, str]) -> Checkpoint:
    return replace(
        point,
        evaluations={names[name]: result for name, result in point.evaluations.items()},
        samples={names.get(name, name): samples for name, samples in point.samples.items()},
    )


def read_run(path: Path) -> Run:
    """Read a run directory; its series still have their identities for names (`named_together`).

    Raises:
        UsageError: nothing of a run is there.
    """
    if not is_run(path):
        raise UsageError(f"{path}: neither a run nor a sweep (no recipe.toml, metrics.jsonl or checkpoints there)")
    folder = RunDirectory(path)
    gaps: list[str] = []
    recipe = _recipe(folder.recipe, gaps)
    log = _log(folder.metrics, gaps)
    results = [*_logged(log), *_files(folder, gaps)]
    known = sort(results, [setting.name for setting in recipe.evaluation_settings] if recipe else [])
    pointers = {name: folder.pointer(name) for name in ("best", "latest")}
    steps = sorted({*folder.steps(), *folder.left_steps(), *(each.step for each in results)} - {0})

    def at(step: int) -> Checkpoint:
        place = folder.checkpoint(step)
        homes = [folder.left_samples(step), place / "samples"] if step else [folder.base_samples]
        pictures = {name: samples for home in homes for name, samples in _samples(home).items()}
        samples = {known.of_pictures(step, name): shown for name, shown in pictures.items()}
        labels = tuple(name for name, target in pointers.items() if target is not None and target == place)
        return Checkpoint(step, known.results(step), samples, not step or place.is_dir(), labels)

    base, checkpoints = at(0), tuple(at(step) for step in steps)
    pictured = {name for point in (base, *checkpoints) for name in point.samples} - known.series.keys()
    run = Run(
        path=path,
        recipe=recipe,
        base=base,
        checkpoints=checkpoints,
        curves=_curves(log),
        notices=_notices(log),
        gaps=(),
        address=_address(folder),
        series={**known.series, **{name: Series(name, name, {}, logged=False) for name in sorted(pictured)}},
    )
    return replace(run, gaps=(*gaps, *_missing(run)))


def _address(folder: RunDirectory) -> str:
    """Address of the W&B run, if the tracker left a web address."""
    file = folder.path / "wandb" / "run-url"
    text = file.read_bytes()[:2000].decode("utf-8", errors="replace").strip() if file.is_file() else ""
    return text if text.startswith(("https://", "http://")) and text.isprintable() else ""


def _recipe(file: Path, gaps: list[str]) -> Recipe | None:
    if not file.is_file():
        gaps.append("recipe.toml is missing: the settings of the run are unknown.")
        return None
    try:
        return read_recipe(file)
    except AmsdError as error:
        gaps.append(f"recipe.toml cannot be read by this version of amsd: {error}")
        return None


def _log(file: Path, gaps: list[str]) -> Log:
    if not file.is_file():
        gaps.append("metrics.jsonl is missing: there are no learning curves.")
        return Log()
    log = read_log(file)
    if log.broken:
        gaps.append(f"{counted(log.broken, 'line')} of metrics.jsonl cannot be read (cut off while written).")
    return log


def _curves(log: Log) -> dict[str, Curve]:
    points: dict[str, dict[int, float]] = {}
    for entry in log.entries:
        for name, value in entry.values.items() if entry.kind == "step" else ():
            # A resumed run logs some steps again: the later line is the one that the weights went through.
            points.setdefault(name, {})[entry.step] = value
    return {name: _curve(values) for name, values in points.items()}


def _curve(points: Mapping[int, float]) -> Curve:
    kept = [(step, value) for step, value in sorted(points.items()) if math.isfinite(value)]
    return Curve(tuple(step for step, _ in kept), tuple(value for _, value in kept), len(points) - len(kept))


def _notices(log: Log) -> tuple[Notice, ...]:
    """Each once, however often a resumed run said it."""
    said = (Notice(entry.name, entry.text, entry.step) for entry in log.entries if entry.kind == "notice")
    return tuple({(notice.kind, notice.text, notice.step): notice for notice in said}.values())


def _logged(log: Log) -> Iterator[Found]:
    """Evaluations of the log; of a step that was evaluated twice under one key, the later one."""
    latest = {(entry.step, entry.name, entry.key): entry for entry in log.entries if entry.kind == "evaluation"}
    for entry in latest.values():
        metrics = dict(_metrics(entry))
        yield Found(entry.step, EvaluationResult(entry.name, {}, "", (), metrics, entry.key))


def _metrics(entry: LogEntry) -> Iterator[tuple[str, Metric]]:
    """Metrics from flat keys `eval/<metric>` and `eval/<metric>/<part>`."""
    found: dict[str, dict[str, float]] = {}
    for key, value in entry.values.items():
        if key.startswith(_EVALUATED) and math.isfinite(value):
            name = key.removeprefix(_EVALUATED)
            head, _, tail = name.rpartition("/")
            metric, part = (head, tail) if tail in _PARTS else (name, "mean")
            found.setdefault(metric, {})[part] = value
    for name, parts in found.items():
        difference, paired = parts.get("difference"), None
        if difference is not None:
            paired = Paired(difference, parts.get("difference_standard_error"), parts.get("p_value"))
        if "mean" in parts:
            yield name, Metric(parts["mean"], parts.get("standard_error"), paired)


def _files(folder: RunDirectory, gaps: list[str]) -> Iterator[Found]:
    """Results of the base model and of every checkpoint, also of those that were deleted."""
    places = [(0, folder.base_evaluation)]
    for step in sorted({*folder.left_steps(), *folder.steps()}):
        places += [(step, folder.left_evaluation(step)), (step, folder.checkpoint(step) / "evaluation")]
    for step, place in places:
        for file in sorted(place.glob("*.json")) if place.is_dir() else []:
            try:
                yield Found(step, EvaluationResult.load(file), file.stem)
            except UsageError as error:
                gaps.append(str(error).replace(f"{folder.path}/", ""))


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


def _missing(run: Run) -> list[str]:
    """Sentences on what a complete run would have."""
    said = []
    if run.recipe is not None and not run.finished:
        ends = [notice.kind for notice in run.notices if notice.kind in ENDINGS]
        state = f"The run {ends[-1]}" if ends[-1:] == ["failed"] else "The run was interrupted" if ends else ""
        state = state or "The run is still going, or it stopped without a message"
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
