"""Learning curves and adjoint norms as small multiples: raw values faint, their moving average strong."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from operator import mul

from amsd.evaluation.result import Metric
from amsd.report.data import Curve
from amsd.report.figures.scale import Kind, Scale, number, scale_for
from amsd.report.figures.svg import Frame, Panel, axes, hue_class, mark, path, picture, plane, shape_of, tag
from amsd.report.numbers import counted, with_error
from amsd.report.story import ShownRun, Story, evaluation, reward_terms, setting_of

#: Vertical pixels are few: more points than this per curve cannot be seen.
_POINTS_ALONE, _POINTS_AMONG_MANY, _MANY = 400, 100, 6
_HELD_OUT = 3


@dataclass(frozen=True)
class _Logged:
    key: str
    title: str
    axis: str
    kind: Kind = "linear"


_LOSS = _Logged("loss", "Loss", "loss", "log")
_LOGGED = (
    _Logged("reward/mean", "Reward in training", "mean over the batch"),
    _Logged("predicted_shift", "Reward above the base, predicted", "first order in the control"),
    _Logged("kl", "KL to the base model", "nats", "sqrt"),
    _Logged("validation/kl", "KL on held-out prompts", "nats", "sqrt"),
    _LOSS,
    _Logged("control_to_target", "Control against target", "ratio of norms"),
    _Logged("gradient_norm", "Gradient norm", "before clipping", "log"),
    _Logged("ess", "Effective sample size of the buffer", "share, 1 = on-policy"),
)
_ADJOINT = (
    _Logged("adjoint_norm/first", "first sampled index", "|a|, norm of the lean adjoint", "log"),
    _Logged("adjoint_norm/middle", "middle index", "|a|, norm of the lean adjoint", "log"),
    _Logged("adjoint_norm/last", "last index", "|a|, norm of the lean adjoint", "log"),
)


_SPEED = {
    key: _Logged(key, title, axis)
    for key, title, axis in (
        ("performance/mfu", "Model FLOP utilization", "share of the device's rate"),
        ("performance/tflops", "Operations", "TFLOP per second"),
        ("performance/images_per_second", "Throughput", "images per second"),
    )
}


def learning_panels(story: Story) -> list[Panel]:
    """What was evaluated and what was logged, over optimizer steps."""
    evaluated = [_evaluated(story, story.reward, "Reward in evaluation", story.reward)]
    if story.diversity:
        name = story.diversity.removeprefix("diversity/")
        evaluated.append(_evaluated(story, story.diversity, "Diversity in evaluation", f"{name} variance in a prompt"))
    evaluated += [_evaluated(story, name, "Held-out metric", name) for name in story.held_out[:_HELD_OUT]]
    evaluated += [_evaluated(story, name, "Distance to the base model", name) for name in story.distances]
    labels = {run.recipe.method.label for run in story.runs if run.recipe is not None}
    loss = replace(_LOSS, title=f"{labels.pop()} loss") if len(labels) == 1 else _LOSS
    shown = [loss if what is _LOSS else what for what in _LOGGED]
    logged = [_logged(story, what) for what in (*shown[:1], *_terms(story), *shown[1:])]
    return [panel for panel in (*logged[:1], *evaluated, *logged[1:]) if panel is not None]


def _terms(story: Story) -> list[_Logged]:
    """A curve for each term of a reward of several."""
    keys = reward_terms(story)
    return [_Logged(key, f"Reward term {key.removeprefix('reward/')}", "mean over the batch") for key in keys]


def speed_panels(story: Story) -> list[Panel]:
    """How fast it went: trajectories and operations per second, and the use of the device where they were logged."""
    keys = sorted({key for run in story.runs for key in run.curves if key.startswith("performance/")})
    named = [_SPEED.get(key, _Logged(key, key.removeprefix("performance/").replace("_", " "), "")) for key in keys]
    shown = [*named, _Logged("images_per_second", "Throughput", "images per second"),
             _Logged("seconds/total", "Time of an update", "seconds")]  # fmt: skip
    return [panel for what in shown if (panel := _logged(story, what)) is not None]


def adjoint_panels(story: Story) -> list[Panel]:
    """Adjoint norms at three places of the schedule, on one logarithmic axis."""
    values = [value for what in _ADJOINT for _, curve in _curves(story, what.key) for value in curve.values]
    return [panel for what in _ADJOINT if (panel := _logged(story, what, values)) is not None]


def smooth(values: Sequence[float]) -> list[float]:
    """Average under a Gaussian window, so that a trend is not delayed; its s.d. is a fortieth of the curve."""
    width = max(1.0, len(values) / 40)
    reach = round(3 * width)
    window = [math.exp(-0.5 * (shift / width) ** 2) for shift in range(-reach, reach + 1)]
    averages = []
    for center in range(len(values)):
        first, last = max(0, center - reach), min(len(values), center + reach + 1)
        weights = window[first - center + reach : last - center + reach]
        averages.append(sum(map(mul, weights, values[first:last])) / sum(weights))
    return averages


def thin(steps: Sequence[int], values: Sequence[float], limit: int) -> list[tuple[int, float]]:
    """At most about `limit` points that keep the extremes: smallest and largest of each stretch, first and last."""
    pairs = list(zip(steps, values, strict=True))
    if len(pairs) <= limit:
        return pairs
    length = -(-2 * len(pairs) // limit)
    kept = {0, len(pairs) - 1}
    for start in range(0, len(pairs), length):
        stretch = range(start, min(start + length, len(pairs)))
        kept |= {min(stretch, key=lambda index: pairs[index][1]), max(stretch, key=lambda index: pairs[index][1])}
    return [pairs[index] for index in sorted(kept)]


def _curves(story: Story, key: str) -> list[tuple[ShownRun, Curve]]:
    found = []
    for entry in story.entries:
        curve = entry.run.curves.get(key) if entry.run is not None else None
        if curve is not None and curve.steps:
            found.append((entry, curve))
    return found


def _frame() -> Frame:
    return Frame(380, 236, left=50, bottom=38, top=24, right=10)


def _logged(story: Story, what: _Logged, range_of: Sequence[float] = ()) -> Panel | None:
    curves = _curves(story, what.key)
    if not curves:
        return None
    kind = what.kind
    values = list(range_of) or [value for _, curve in curves for value in curve.values]
    if kind == "log" and (min(values) <= 0 or max(values) < 5 * min(values)):
        kind = "linear"
    frame = _frame()
    x = scale_for([step for _, curve in curves for step in curve.steps], *frame.x, include=(0,))
    x = Scale(0, max(x.high, 1), *frame.x, whole=True)
    y = scale_for(values, *frame.y, kind=kind)
    content = "".join(_line(entry, curve, x, y, len(curves)) for entry, curve in curves)
    return _panel(what.title, what.axis + (" (log)" if kind == "log" else ""), frame, x, y, content, len(curves))


def _line(entry: ShownRun, curve: Curve, x: Scale, y: Scale, among: int) -> str:
    limit = _POINTS_ALONE if among <= _MANY else _POINTS_AMONG_MANY
    floor = [value if y.kind != "log" else max(value, y.low) for value in curve.values]
    raw = [(x(step), y(value)) for step, value in thin(curve.steps, floor, limit)]
    mean = [(x(step), y(value)) for step, value in thin(curve.steps, smooth(floor), limit)]
    color = hue_class(entry.hue)
    return tag("path", d=path(raw), class_=f"raw {color}", data_run=entry.key) + tag(
        "path", d=path(mean), class_=f"line {color}", data_run=entry.key, data_label=entry.label
    )


@dataclass(frozen=True)
class _Evaluated:
    """One metric over the evaluated checkpoints of a run, under one set of conditions."""

    entry: ShownRun
    points: tuple[tuple[int, Metric], ...]
    series: str = ""
    """Name of the series where it is not the one that stands for the run."""

    @property
    def label(self) -> str:
        return f"{self.entry.label} · {self.series}" if self.series else self.entry.label


def _evaluated(story: Story, name: str, title: str, axis: str) -> Panel | None:
    """Evaluated checkpoints with error bars; the base model at step 0 and as a level to compare with.

    Results of a single run under other conditions of the same setting are dashed curves of their own.
    """
    series = [each for entry in story.entries for each in _series(story, entry, name)]
    if not series:
        return None
    frame = _frame()
    every = list(itertools.chain.from_iterable(each.points for each in series))
    ends = [m.mean + sign * (m.standard_error or 0) for _, m in every for sign in (-1, 1)]
    x = Scale(0, max(step for step, _ in every) * 1.06 or 1, *frame.x, whole=True)
    y = scale_for(ends, *frame.y)
    level = next((metric.mean for step, metric in every if step == 0), None)
    content = "" if level is None else tag("path", d=f"M{frame.left} {y(level):.1f}H{frame.x[1]:.1f}", class_="level")
    few = len(series) <= 2 * _MANY
    if few and story.kind == "comparison":
        content += "".join(_band(each, x, y) for each in series)
    content += "".join(_checkpoints(each, x, y, bars=few and story.kind != "comparison") for each in series)
    return _panel(title, axis + (" ± s.e." if few else ""), frame, x, y, content, len(series))


def _series(story: Story, entry: ShownRun, name: str) -> Iterator[_Evaluated]:
    """The curve that stands for a run; of a report on a single run also those of the same setting beside it."""
    run = entry.run
    if run is None:
        return
    shown = setting_of(story, run)
    others = [n for n, s in run.series.items() if shown and n != shown and s.setting == run.series[shown].setting]
    for series in [shown, *(others if story.kind == "run" else ())]:
        start = evaluation(run.base, series)
        found = [(0, start.metrics[name])] if start is not None and name in start.metrics else []
        for checkpoint in run.checkpoints:
            result = evaluation(checkpoint, series)
            if result is not None and name in result.metrics:
                found.append((checkpoint.step, result.metrics[name]))
        if found and found[-1][0]:  # not the base model alone
            yield _Evaluated(entry, tuple(found), series if series and series != shown else "")


def _band(own: _Evaluated, x: Scale, y: Scale) -> str:
    """One standard error to each side of a curve, as an area."""
    above = [(x(step), y(metric.mean + (metric.standard_error or 0))) for step, metric in own.points]
    below = [(x(step), y(metric.mean - (metric.standard_error or 0))) for step, metric in own.points]
    return tag(
        "path", d=f"{path(above + below[::-1])}Z", class_=f"band {hue_class(own.entry.hue)}", data_run=own.entry.key
    )


def _checkpoints(own: _Evaluated, x: Scale, y: Scale, bars: bool) -> str:
    entry, color = own.entry, hue_class(own.entry.hue)
    places = [(x(step), y(metric.mean)) for step, metric in own.points]
    kind = f"line {color}{' beside' if own.series else ''}"
    parts = [tag("path", d=path(places), class_=kind, data_run=entry.key, data_label=own.label)]
    for (step, metric), (left, level) in zip(own.points, places, strict=True):
        error = metric.standard_error
        bar = ""
        if bars and error:
            bar = tag("path", d=f"M{left:.1f} {y(metric.mean - error):.1f}V{y(metric.mean + error):.1f}", class_="bar")
        spot = mark(shape_of(entry.hue), left, level, 3, "spot small")
        words = f"{own.label}, step {step}: {with_error(metric)}"
        parts.append(tag("g", bar + spot, class_=f"dot {color}", data_run=entry.key, aria_label=words, role="img"))
    return "".join(parts)


def _panel(title: str, axis: str, frame: Frame, x: Scale, y: Scale, content: str, count: int) -> Panel:
    words = f"{title}: {axis} over optimizer steps, {counted(count, 'run')}, up to step {number(x.high)}"
    drawing = axes(frame, x, y, "optimizer step", axis, (5, 4)) + plane(frame, x, y, content)
    svg = picture(frame, drawing, words, "lines many" if count > _MANY else "lines")
    return Panel(title, svg)
