"""Tables of the report: checkpoints of a run, runs of a sweep, and trials averaged over their seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from amsd.evaluation.result import Metric
from amsd.places import in_text
from amsd.recipe.cost import forwards_per_step
from amsd.report.data import Checkpoint, Run
from amsd.report.numbers import difference, duration, p_value, plain, with_error
from amsd.report.seeds import by_trial, over_seeds
from amsd.report.story import Axis, EvaluatedPoint, ShownRun, Story, kl_at, points
from amsd.report.winner import standings


@dataclass(frozen=True)
class Cell:
    """One cell; `sort` is what a click on the column's head sorts by."""

    text: str
    below: tuple[str, ...] = ()
    sort: float | str | None = None
    hue: int | None = None
    """Color and shape of a mark before the text."""
    badge: str = ""
    link: str = ""
    """Address that the text leads to."""


@dataclass(frozen=True)
class TableRow:
    """One line; `key` links it to the marks of the same run in the figures."""

    key: str
    cells: tuple[Cell, ...]
    emphasis: bool = False


@dataclass(frozen=True)
class ReportTable:
    """A table with its caption; `setting` chooses it where there are several."""

    caption: str
    heads: tuple[str, ...]
    rows: tuple[TableRow, ...]
    setting: str = ""


EMPTY = Cell("–")


def tables(story: Story) -> list[ReportTable]:
    """One table for each evaluation setting of a run; for a sweep its runs, and its trials over seeds if repeated."""
    if story.kind == "run":
        return [checkpoint_table(story.runs[0], setting) for setting in story.settings]
    over_seeds = seed_table(story)
    return ([over_seeds] if over_seeds else []) + [trial_table(story)]


def checkpoint_table(run: Run, setting: str) -> ReportTable:
    """The base model and every evaluated checkpoint with all metrics."""
    checkpoints = [point for point in (run.base, *run.checkpoints) if setting in point.evaluations]
    names = list(dict.fromkeys(name for point in checkpoints for name in point.evaluations[setting].metrics))
    rows = tuple(_checkpoint_row(run, point, setting, names) for point in checkpoints)
    return ReportTable("Checkpoints", ("model", *names, "KL (nats)"), rows, setting)


def _checkpoint_row(run: Run, point: Checkpoint, setting: str, names: Sequence[str]) -> TableRow:
    metrics = point.evaluations[setting].metrics
    is_base = point is run.base
    badge = " · ".join((*point.labels, *(() if point.on_disk else ("weights deleted",))))
    name = Cell("base" if is_base else f"step {point.step}", sort=point.step, badge=badge)
    kl = None if is_base else kl_at(run, point.step)
    values = (metric_cell(metrics.get(name)) for name in names)
    return TableRow("base" if is_base else "run", (name, *values, metric_cell(kl)), "best" in point.labels)


def trial_table(story: Story) -> ReportTable:
    """Every run of a sweep at its last evaluated checkpoint, best reward first."""
    rows = [_trial_row(story, entry) for entry in story.entries]
    keys = tuple(axis.key for axis in _axes(story))
    measured = (story.reward, story.diversity or "diversity", "KL (nats)", *_others(story))
    calls = ("network calls",) if _several_methods(story) else ()
    heads = ("run", "CFG mode", *measured, *keys, "step", *calls, "time", "W&B")
    return ReportTable("Runs", heads, _ranked(story, rows), story.setting or "")


def _axes(story: Story) -> list[Axis]:
    """The searched keys, without one that only names the guidance mode: that has a column of its own."""
    return [
        axis
        for axis in story.axes
        if not all(
            entry.mode is not None and entry.params.get(axis.key) == entry.mode.name
            for entry in story.entries
            if axis.key in entry.params and entry.run is not None
        )
    ]


def _ranked(story: Story, rows: list[tuple[float, TableRow]]) -> tuple[TableRow, ...]:
    """Rows by their ranks, those of the trial that won emphasized."""
    best = standings(story)[:1]
    winners = {entry.key for entry in story.entries if best and entry.trial == best[0].entry.trial}
    return tuple(replace(row, emphasis=row.key in winners) for _, row in sorted(rows, key=lambda pair: pair[0]))


def _trial_row(story: Story, entry: ShownRun) -> tuple[float, TableRow]:
    last = next(reversed(points(story, entry.run)), None)
    notes = []
    if entry.copy_of is not None:
        notes.append(f"same run as trial {entry.copy_of}")
    if entry.error:
        error = in_text(entry.error)
        notes.append(error if len(error) < 160 else f"{error[:159]}…")
    state = "" if entry.state == "complete" else entry.state
    state = state if entry.feasible else "breaks a constraint"
    cells = (
        Cell(entry.label, tuple(notes), (entry.trial or 0) + 1e-6 * (entry.seed or 0), badge=state, link=entry.folder),
        _mode(entry),
        *((metric_cell(last.reward), metric_cell(last.diversity), metric_cell(last.kl)) if last else (EMPTY,) * 3),
        *(metric_cell(last.others.get(name) if last else None) for name in _others(story)),
        *(_parameter(entry.params.get(axis.key)) for axis in _axes(story)),
        Cell(str(last.step) if last else "–", sort=last.step if last else None),
        *((_calls(entry, last),) if _several_methods(story) else ()),
        Cell(duration(entry.duration), sort=entry.duration),
        Cell("run", link=entry.run.address) if entry.run is not None and entry.run.address else EMPTY,
    )
    return (-last.reward.mean if last else float("inf"), TableRow(entry.key, cells))


def _mode(entry: ShownRun) -> Cell:
    return Cell("–", sort="") if entry.mode is None else Cell(entry.mode.name, sort=entry.mode.name, hue=entry.hue)


def _several_methods(story: Story) -> bool:
    """Whether runs differ in what an optimizer step costs them because they differ in their method."""
    return len({run.recipe.method.name for run in story.runs if run.recipe is not None}) > 1


def _calls(entry: ShownRun, last: EvaluatedPoint | None) -> Cell:
    """Network forward-equivalents of the training up to the last evaluated checkpoint (docs/method.md section 7)."""
    if last is None or entry.run is None or entry.run.recipe is None:
        return EMPTY
    calls = last.step * forwards_per_step(entry.run.recipe)
    return Cell(f"{calls:,.0f}", sort=calls)


def _others(story: Story) -> tuple[str, ...]:
    """Further metrics of a sweep's table: those that were held out, and distances to the base model."""
    return (*story.held_out, *story.distances)


def seed_table(story: Story) -> ReportTable | None:
    """Trials averaged over training seeds; None where no trial has two runs with a result.

    The error is over seeds: what another training run would change. The difference is the mean of the runs' paired
    differences to the base model, its p-value a two-sided t-test over seeds.
    """
    groups = by_trial(story)
    if not any(len(group) > 1 for group in groups.values()):
        return None
    rows = []
    for number, group in groups.items():
        entry = group[0][0]
        rewards = over_seeds([point.reward for _, point in group])
        diversities = over_seeds([point.diversity for _, point in group])
        kls = over_seeds([point.kl for _, point in group])
        cells = (
            Cell(f"trial {number}", sort=number),
            _mode(entry),
            *(metric_cell(metric) for metric in (rewards, diversities, kls)),
            Cell(str(len(group)), sort=len(group)),
            *(_parameter(entry.params.get(axis.key)) for axis in _axes(story)),
        )
        rows.append((-rewards.mean if rewards else float("inf"), TableRow(entry.key, cells)))
    keys = tuple(axis.key for axis in _axes(story))
    heads = ("trial", "CFG mode", story.reward, story.diversity or "diversity", "KL (nats)", "seeds", *keys)
    return ReportTable("Trials, averaged over training seeds", heads, _ranked(story, rows), story.setting or "")


def metric_cell(metric: Metric | None) -> Cell:
    """Mean ± standard error; below it the paired difference to the base model and its p-value."""
    if metric is None:
        return EMPTY
    below = []
    if metric.paired is not None:
        below.append(f"Δ {difference(metric.paired)}")
        if metric.paired.p_value is not None:
            below.append(p_value(metric.paired.p_value))
    return Cell(with_error(metric), tuple(below), metric.mean)


def _parameter(value: Any) -> Cell:
    if value is None:
        return EMPTY
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return Cell(plain(value), sort=float(value) if is_number else str(value))
