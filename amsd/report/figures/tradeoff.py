"""Reward against diversity, and reward against KL: what was gained and what it cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from amsd.evaluation.result import Metric
from amsd.report.figures.scale import Scale, scale_for
from amsd.report.figures.svg import (
    BASE_MARK,
    Figure,
    Frame,
    axes,
    hue_class,
    label,
    mark,
    path,
    picture,
    plane,
    shape_of,
    tag,
    told,
)
from amsd.report.numbers import with_error
from amsd.report.story import NO_HUE, EvaluatedPoint, ShownRun, Story, base_metric, points


@dataclass(frozen=True)
class _Dot:
    entry: ShownRun
    point: EvaluatedPoint
    across: Metric
    """What the horizontal axis shows."""
    last: bool
    """Whether this is the run's last evaluated checkpoint."""


@dataclass(frozen=True)
class _Plot:
    dots: tuple[_Dot, ...]
    base: tuple[Metric, Metric] | None
    """Horizontal and vertical value of the unchanged model."""
    more_is_better: bool
    x_title: str
    x_name: str
    y_title: str


def diversity_figure(story: Story) -> Figure | None:
    """Reward against diversity within a prompt; None where no diversity was evaluated."""
    if story.diversity is None:
        return None
    base = _base(story, story.diversity)
    name = story.diversity.removeprefix("diversity/")
    title = f"diversity within a prompt ({name} variance) →"
    return _figure(story, lambda point: point.diversity, base, True, title, "diversity")


def kl_figure(story: Story) -> Figure | None:
    """Reward against the KL divergence from the base model; None where it was not logged."""
    reward = _base(story, story.reward)
    base = (Metric(0.0, None), reward[1]) if reward else None
    return _figure(story, lambda point: point.kl, base, False, "← KL to the base model (nats, square-root axis)", "KL")


def _base(story: Story, across: str) -> tuple[Metric, Metric] | None:
    for run in story.runs:
        x, y = base_metric(story, run, across), base_metric(story, run, story.reward)
        if x is not None and y is not None:
            return x, y
    return None


def _figure(
    story: Story,
    across: Callable[[EvaluatedPoint], Metric | None],
    base: tuple[Metric, Metric] | None,
    more_is_better: bool,
    x_title: str,
    x_name: str,
) -> Figure | None:
    dots = []
    for entry in story.entries:
        placed = [(point, metric) for point in points(story, entry.run) if (metric := across(point)) is not None]
        for index, (point, metric) in enumerate(placed):
            dots.append(_Dot(entry, point, metric, index == len(placed) - 1))
    if not dots:
        return None
    plot = _Plot(tuple(dots), base, more_is_better, x_title, x_name, f"↑ {story.reward}, evaluation mean")
    single = story.kind == "run"
    return Figure(_draw(plot, Frame(560, 400), single), _draw(plot, Frame(343, 330, left=44), single))


def _draw(plot: _Plot, frame: Frame, single: bool) -> str:
    ends = [end for dot in plot.dots for end in _ends(dot.across)] + ([*_ends(plot.base[0])] if plot.base else [])
    levels = [end for dot in plot.dots for end in _ends(dot.point.reward)]
    levels += [*_ends(plot.base[1])] if plot.base else []
    x = scale_for(ends, *frame.x, kind="linear" if plot.more_is_better else "sqrt")
    y = scale_for(levels, *frame.y)
    trails = _trails(plot, x, y, single)
    front = "" if single else _front(plot, x, y, frame)
    # Small checkpoints first, so that the final marks lie on top.
    marks = "".join(_mark(plot, dot, x, y, single) for dot in sorted(plot.dots, key=lambda dot: dot.last))
    content = plane(frame, x, y, trails + front + _base_mark(plot, x, y) + marks)
    words = f"Scatter plot: {plot.y_title[2:]} against {plot.x_name}, {len(plot.dots)} checkpoints"
    ticks = (4, 5) if frame.width < 400 else (6, 6)
    return picture(frame, axes(frame, x, y, plot.x_title, plot.y_title, ticks) + content, words, "points")


def _ends(metric: Metric) -> tuple[float, float]:
    error = metric.standard_error or 0.0
    return metric.mean - error, metric.mean + error


def _trails(plot: _Plot, x: Scale, y: Scale, single: bool) -> str:
    """The way of each run from the base model through its checkpoints."""
    parts = []
    for entry in dict.fromkeys(dot.entry.key for dot in plot.dots):
        own = [dot for dot in plot.dots if dot.entry.key == entry]
        places = [(x(dot.across.mean), y(dot.point.reward.mean)) for dot in own]
        if plot.base:
            places.insert(0, (x(plot.base[0].mean), y(plot.base[1].mean)))
        classes = f"trail{' strong' * single} {hue_class(own[0].entry.hue)}"
        parts.append(tag("path", d=path(places), class_=classes, data_run=entry))
    return "".join(parts)


def _front(plot: _Plot, x: Scale, y: Scale, frame: Frame) -> str:
    last = [dot for dot in plot.dots if dot.last and dot.entry.feasible]
    sign = 1 if plot.more_is_better else -1
    front = [last[index] for index in pareto([(sign * dot.across.mean, dot.point.reward.mean) for dot in last])]
    if len(front) < 2:
        return ""
    front.sort(key=lambda dot: dot.across.mean)
    stairs: list[tuple[float, float]] = []
    for dot in front:
        here = (x(dot.across.mean), y(dot.point.reward.mean))
        if stairs:
            before = stairs[-1]
            stairs.append((here[0], before[1]) if sign < 0 else (before[0], here[1]))
        stairs.append(here)
    return tag("path", d=path(stairs), class_="front")


def _mark(plot: _Plot, dot: _Dot, x: Scale, y: Scale, single: bool) -> str:
    left, level = x(dot.across.mean), y(dot.point.reward.mean)
    bars = _bars(dot.across, dot.point.reward, x, y) if dot.last or single else ""
    mode = dot.entry.mode
    size = 6.0 if dot.last else 3.0 + single
    words = (
        f"{dot.entry.label}, step {dot.point.step}\n"
        f"reward {with_error(dot.point.reward)}\n{plot.x_name} {with_error(dot.across)}"
    )
    if mode:
        words += f"\n{mode.name}"
    spot = mark(shape_of(dot.entry.hue), left, level, size, "spot" if dot.last else "spot small")
    step = ""
    if single and dot.last:
        near_end = left > (x.start + x.end) / 2
        place = (left - 10 if near_end else left + 10, level - 10)
        step = label(*place, f"step {dot.point.step}", f"note halo{' end' * near_end}")
    return told(bars + spot + step, words, hue_class(dot.entry.hue), dot.entry.key)


def _bars(across: Metric, reward: Metric, x: Scale, y: Scale) -> str:
    """One standard error to each side."""
    low, high = (x(end) for end in _ends(across))
    below, above = (y(end) for end in _ends(reward))
    data = f"M{low:.1f} {y(reward.mean):.1f}H{high:.1f}M{x(across.mean):.1f} {below:.1f}V{above:.1f}"
    return tag("path", d=data, class_="bar")


def _base_mark(plot: _Plot, x: Scale, y: Scale) -> str:
    if plot.base is None:
        return ""
    across, reward = plot.base
    place = (x(across.mean), y(reward.mean))
    words = f"base model\nreward {with_error(reward)}\n{plot.x_name} {with_error(across)}"
    near_end = place[0] > (x.start + x.end) / 2
    note = label(place[0] + (-10 if near_end else 10), place[1] + 16, "base", f"note halo{' end' * near_end}")
    cross = mark(BASE_MARK, *place, 5, "cross")
    return told(_bars(across, reward, x, y) + cross + note, words, f"base {hue_class(NO_HUE)}")


def pareto(pairs: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the pairs that no other pair beats in both (larger is better), by ascending first number."""
    order = sorted(range(len(pairs)), key=lambda index: pairs[index], reverse=True)
    front: list[int] = []
    best = float("-inf")
    for index in order:
        if pairs[index][1] > best:
            front.append(index)
            best = pairs[index][1]
    return front[::-1]
