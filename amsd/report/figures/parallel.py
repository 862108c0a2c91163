"""Parallel coordinates: every trial a line through its parameters and its results."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amsd.report.figures.scale import Scale, number, searched_scale, tick_labels
from amsd.report.figures.svg import Figure, Frame, hue_class, label, picture, tag
from amsd.report.numbers import plain
from amsd.report.story import Axis, ShownRun, Story, points


@dataclass(frozen=True)
class _Column:
    title: str
    values: Mapping[str, Any]
    """By key of the entry."""
    numeric: bool
    result: bool = False
    log: bool = False
    stops: tuple[float, ...] = ()
    """The only values that a searched key could take."""


def parallel_figure(story: Story) -> Figure | None:
    """Searched keys, then reward, diversity and KL of each trial's last evaluated checkpoint."""
    columns = [_searched(axis, story.entries) for axis in story.axes if len(axis.values) > 1] + _results(story)
    known = {key for column in columns if column.result for key in column.values}
    entries = [entry for entry in story.entries if entry.key in known]
    if len(columns) < 2 or len(entries) < 2:
        return None
    words = f"Parallel coordinates of {len(entries)} trials over {', '.join(column.title for column in columns)}"
    return Figure(_wide(columns, entries, words), _narrow(columns, entries, words))


def _searched(axis: Axis, entries: Sequence[ShownRun]) -> _Column:
    values = {entry.key: entry.params[axis.key] for entry in entries if axis.key in entry.params}
    stops = tuple(float(value) for value in axis.values) if axis.choices and axis.numeric else ()
    return _Column(axis.key, values, axis.numeric, log=axis.log, stops=stops)


def _results(story: Story) -> list[_Column]:
    last = {entry.key: found[-1] for entry in story.entries if (found := points(story, entry.run))}
    diversity = {key: point.diversity.mean for key, point in last.items() if point.diversity}
    kl = {key: point.kl.mean for key, point in last.items() if point.kl}
    columns = [
        _Column("diversity", diversity, True, result=True),
        _Column("KL (nats)", kl, True, result=True),
        _Column(story.reward, {key: point.reward.mean for key, point in last.items()}, True, result=True),
    ]
    return [column for column in columns if column.values]


def _scale(column: _Column, start: float, end: float) -> Scale:
    if not column.numeric:
        return Scale(-0.25, max(len(_kinds(column)) - 0.75, 0.25), start, end)
    return searched_scale([float(value) for value in column.values.values()], start, end, column.log)


def _kinds(column: _Column) -> list[str]:
    return sorted({plain(value) for value in column.values.values()})


def _place(column: _Column, scale: Scale, key: str) -> float | None:
    value = column.values.get(key)
    if value is None:
        return None
    return scale(float(value)) if column.numeric else scale(float(_kinds(column).index(plain(value))))


def _ticks(column: _Column, scale: Scale, count: int) -> list[tuple[float, str]]:
    if not column.numeric:
        return [(scale(float(index)), words) for index, words in enumerate(_kinds(column))]
    if column.stops:
        return [(scale(stop), number(stop)) for stop in column.stops]
    ticks = scale.ticks(count)
    return [(scale(tick), words) for tick, words in zip(ticks, tick_labels(ticks), strict=True)]


def _shorten(words: str, length: int) -> str:
    return words if len(words) <= length else f"{words[: length - 1]}…"


def _wide(columns: Sequence[_Column], entries: Sequence[ShownRun], words: str) -> str:
    frame = Frame(1120, 340, left=70, right=80, top=58, bottom=16)
    gap = (frame.x[1] - frame.x[0]) / (len(columns) - 1)
    scales = [_scale(column, *frame.y) for column in columns]
    parts = []
    for index, (column, scale) in enumerate(zip(columns, scales, strict=True)):
        at = frame.left + index * gap
        section, _, name = column.title.rpartition(".")
        parts.append(tag("path", d=f"M{at:.1f} {frame.y[1]}V{frame.y[0]}", class_="axis strong"))
        room = int(gap / 6.4)
        parts.append(label(at, 18, _shorten(section, room), "tick mid"))
        parts.append(label(at, 34, _shorten(name, room), f"title mid{' result' * column.result}"))
        for level, text in _ticks(column, scale, 5):
            parts.append(tag("path", d=f"M{at - 3:.1f} {level:.1f}h6", class_="axis"))
            # Lines meet at the stops of an axis: labels stand above them.
            raised = 7 if column.stops or not column.numeric else -4
            parts.append(label(at + 8, level - raised, _shorten(text, room), "tick halo"))
    lines = []
    for entry in entries:
        spots = [
            (frame.left + index * gap, _place(column, scale, entry.key))
            for index, (column, scale) in enumerate(zip(columns, scales, strict=True))
        ]
        lines.append(_line(entry, [(at, level) for at, level in spots if level is not None], vertical=False))
    return picture(frame, "".join(lines + parts), words, "parallel")


def _narrow(columns: Sequence[_Column], entries: Sequence[ShownRun], words: str) -> str:
    """For a phone: the axes lie and the lines run down."""
    row = 66
    frame = Frame(343, row * len(columns) + 8, left=16, right=20, top=30, bottom=24)
    scales = [_scale(column, *frame.x) for column in columns]
    parts = []
    for index, (column, scale) in enumerate(zip(columns, scales, strict=True)):
        at = frame.top + index * row
        parts.append(tag("path", d=f"M{frame.x[0]} {at}H{frame.x[1]}", class_="axis strong"))
        parts.append(label(frame.left, at - 10, column.title, f"title halo{' result' * column.result}"))
        for place, text in _ticks(column, scale, 4):
            parts.append(tag("path", d=f"M{place:.1f} {at - 3}v6", class_="axis"))
            parts.append(label(place, at + 17, _shorten(text, 14), "tick mid halo"))
    lines = []
    for entry in entries:
        spots = [
            (_place(column, scale, entry.key), frame.top + index * row)
            for index, (column, scale) in enumerate(zip(columns, scales, strict=True))
        ]
        lines.append(_line(entry, [(place, at) for place, at in spots if place is not None], vertical=True))
    return picture(frame, "".join(lines + parts), words, "parallel")


def _line(entry: ShownRun, places: Sequence[tuple[float, float]], vertical: bool) -> str:
    """A curve that leaves and enters every axis at a right angle."""
    data = f"M{places[0][0]:.1f} {places[0][1]:.1f}"
    for (ax, ay), (bx, by) in itertools.pairwise(places):
        if vertical:
            middle = (ay + by) / 2
            data += f"C{ax:.1f} {middle:.1f} {bx:.1f} {middle:.1f} {bx:.1f} {by:.1f}"
        else:
            middle = (ax + bx) / 2
            data += f"C{middle:.1f} {ay:.1f} {middle:.1f} {by:.1f} {bx:.1f} {by:.1f}"
    return tag("path", d=data, class_=f"line {hue_class(entry.hue)}", data_run=entry.key, data_label=entry.label)
