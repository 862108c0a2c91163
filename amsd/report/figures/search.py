"""A sweep's search: values over trials, trials over time, and values over each searched key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from amsd.report.figures.scale import Scale, number, scale_for, searched_scale
from amsd.report.figures.svg import (
    Figure,
    Frame,
    Panel,
    axes,
    hue_class,
    label,
    mark,
    picture,
    plane,
    shape_of,
    tag,
    told,
)
from amsd.report.numbers import duration
from amsd.report.story import Axis, ShownRun, Story

_ROW, _MOST_ROWS = 15, 60


def history_figure(story: Story) -> Figure | None:
    """The first objective of each complete trial, in their order, and the best of those that keep the constraints."""
    trials = _trials(story)
    if len(trials) < 2:
        return None
    return Figure(_history(story, trials, Frame(1120, 300, left=70)), _history(story, trials, Frame(343, 290, left=44)))


def slice_panels(story: Story) -> list[Panel]:
    """The first objective over each searched key, one panel for each."""
    trials = _trials(story)
    panels = [_slice(story, axis, trials) for axis in story.axes if len(axis.values) > 1]
    return [panel for panel in panels if panel is not None]


def timeline_figure(story: Story) -> Figure | None:
    """When each trial ran, first to last attempt; None where no trial has begun."""
    begun = {entry.trial: entry for entry in reversed(story.entries) if entry.started is not None}
    entries = sorted(begun.values(), key=lambda entry: entry.trial or 0)[-_MOST_ROWS:]
    if len(entries) < 2:
        return None
    return Figure(_timeline(entries, Frame(1120, 60 + _ROW * len(entries), left=70)),
                  _timeline(entries, Frame(343, 60 + _ROW * len(entries), left=52)))  # fmt: skip


def _trials(story: Story) -> list[ShownRun]:
    """One entry for each trial with values, by number."""
    found = {entry.trial: entry for entry in reversed(story.entries) if entry.objective is not None}
    return sorted(found.values(), key=lambda entry: entry.trial or 0)


def _value(entry: ShownRun) -> float:
    assert entry.objective is not None
    return entry.objective


def _history(story: Story, trials: Sequence[ShownRun], frame: Frame) -> str:
    goal = story.objectives[0]
    numbers = [float(entry.trial or 0) for entry in trials]
    x = scale_for(numbers, *frame.x)
    x = Scale(min(numbers) - 0.5, max(numbers) + 0.5, x.start, x.end, whole=True)
    y = scale_for([_value(entry) for entry in trials], *frame.y)
    stairs = ""
    best: float | None = None
    for entry in (entry for entry in trials if entry.feasible):
        value, at = _value(entry), x(float(entry.trial or 0))
        if best is None:
            best, stairs = value, f"M{at:.1f} {y(value):.1f}"
        better = value > best if goal.maximize else value < best
        best = value if better else best
        stairs += f"H{at:.1f}V{y(best):.1f}"
    stairs += f"H{frame.x[1]:.1f}" if stairs else ""
    marks = "".join(_mark(entry, x(float(entry.trial or 0)), y(_value(entry)), goal.name) for entry in trials)
    content = plane(frame, x, y, (tag("path", d=stairs, class_="front") if stairs else "") + marks)
    words = f"Optimization history: {goal.name} of {len(trials)} trials"
    title = f"{'↑' if goal.maximize else '↓'} {goal.name}"
    return picture(frame, axes(frame, x, y, "trial", title, (6, 5)) + content, words, "points")


def _slice(story: Story, axis: Axis, trials: Sequence[ShownRun]) -> Panel | None:
    own = [entry for entry in trials if axis.key in entry.params]
    if len(own) < 2:
        return None
    frame = Frame(380, 236, left=50, bottom=38, top=24, right=16)
    x, place, ticks = _across(axis, own, frame)
    y = scale_for([_value(entry) for entry in own], *frame.y)
    name = story.objectives[0].name
    marks = "".join(_mark(entry, place(entry.params[axis.key]), y(_value(entry)), name) for entry in own)
    drawing = axes(frame, x, y, axis.key, name, (4, 4), x_ticks=ticks) + plane(frame, x, y, marks)
    words = f"Slice plot: {name} over {axis.key}, {len(own)} trials"
    return Panel(axis.key, picture(frame, drawing, words, "points"))


def _across(
    axis: Axis, entries: Sequence[ShownRun], frame: Frame
) -> tuple[Scale, Callable[[Any], float], list[tuple[float, str]] | None]:
    """Scale of a searched key, where a value stands on it, and its ticks where they are not round numbers."""
    taken = [entry.params[axis.key] for entry in entries]
    if axis.numeric:
        scale = searched_scale([float(value) for value in taken], *frame.x, log=axis.log)
        stops = [(scale(float(value)), number(float(value))) for value in axis.values] if axis.choices else None
        return scale, lambda value: scale(float(value)), stops
    kinds = [str(value) for value in axis.values]
    scale = Scale(-0.5, len(kinds) - 0.5, *frame.x)
    return (
        scale,
        lambda value: scale(float(kinds.index(str(value)))),
        [(scale(float(index)), kind if len(kind) < 15 else f"{kind[:13]}…") for index, kind in enumerate(kinds)],
    )


def _timeline(entries: Sequence[ShownRun], frame: Frame) -> str:
    starts = [entry.started for entry in entries if entry.started is not None]
    first = min(starts)
    ends = [(entry.ended or entry.started or first) for entry in entries]
    # Minutes, or hours where they are many.
    unit, name = (3600.0, "hours") if max(ends) - first > 3 * 3600 else (60.0, "minutes")
    x = Scale(0, max((max(ends) - first) / unit, 1e-3) * 1.02, *frame.x)
    y = Scale(-0.5, len(entries) - 0.5, frame.top, frame.height - frame.bottom)
    parts = []
    for row, entry in enumerate(entries):
        assert entry.started is not None
        left, right = x((entry.started - first) / unit), x(((entry.ended or entry.started) - first) / unit)
        clock = datetime.fromtimestamp(entry.started, UTC).strftime("%d %b %H:%M UTC")
        words = f"trial {entry.trial}, {entry.state}\nstarted {clock}\n{duration(entry.duration)}"
        level = y(row)
        bar = tag("rect", x=left, y=level - 4.5, width=max(right - left, 2.0), height=9, class_=f"span {entry.state}")
        parts.append(_told(entry, bar, words))
        if len(entries) <= 2 * _MOST_ROWS // 3 or row % 5 == 0:
            parts.append(label(frame.left - 7, level + 3.8, f"trial {entry.trial}" if frame.left > 60 else
                               str(entry.trial), "tick end"))  # fmt: skip
    drawing = axes(frame, x, y, f"{name} since {datetime.fromtimestamp(first, UTC):%d %B %Y, %H:%M} UTC", "",
                   (6, 0), y_ticks=[])  # fmt: skip
    words = f"Timeline of {len(entries)} trials"
    return picture(frame, drawing + plane(frame, x, y, "".join(parts)), words, "points timeline")


def _mark(entry: ShownRun, left: float, level: float, name: str) -> str:
    words = f"trial {entry.trial}\n{name} {number(_value(entry))}"
    words += f"\n{entry.mode.name}" if entry.mode else ""
    words += "" if entry.feasible else "\nbreaks a constraint"
    return _told(entry, mark(shape_of(entry.hue), left, level, 5, "spot"), words)


def _told(entry: ShownRun, content: str, words: str) -> str:
    return told(content, words, f"{hue_class(entry.hue)}{'' if entry.feasible else ' infeasible'}", entry.key)
