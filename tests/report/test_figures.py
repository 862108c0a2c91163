from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

from amsd.evaluation.result import Metric, Paired
from amsd.report.figures.curves import adjoint_panels, learning_panels, smooth, thin
from amsd.report.figures.parallel import parallel_figure
from amsd.report.figures.scale import Scale, number, scale_for, tick_labels
from amsd.report.figures.tradeoff import diversity_figure, kl_figure, pareto
from amsd.report.numbers import difference, duration, p_value, with_error
from amsd.report.story import Story


def test_scales_hit_their_ends_and_are_monotone() -> None:
    for kind in ("linear", "log", "sqrt"):
        low = 0.5 if kind == "log" else 0.0
        scale = Scale(low, 80.0, 50.0, 350.0, kind)
        assert scale(low) == pytest.approx(50)
        assert scale(80.0) == pytest.approx(350)
        assert all(a < b for a, b in pairwise([scale(value) for value in (1, 2, 5, 10, 50)]))
    assert Scale(0, 100, 0, 10, "sqrt")(25) == pytest.approx(5)
    assert Scale(1, 100, 0, 10, "log")(10) == pytest.approx(5)


@pytest.mark.parametrize("values", [[0.0, 1.0], [1e-5, 3e-5], [-4, 17], [0.3], [0.0], [], [1e6, 5e6], [float("nan")]])
@pytest.mark.parametrize("kind", ["linear", "log", "sqrt"])
def test_ticks_are_inside_distinct_and_readable(values: list[float], kind: str) -> None:
    scale = scale_for(values, 0, 300, kind)  # type: ignore[arg-type]
    ticks = scale.ticks(5)
    assert 1 <= len(ticks) <= 12
    assert all(scale.low - 1e-9 <= tick <= scale.high + 1e-9 for tick in ticks)
    labels = tick_labels(ticks)
    assert len(set(labels)) == len(labels)


def test_numbers_have_the_digits_of_their_error() -> None:
    assert with_error(Metric(0.53182, 0.0123)) == "0.532 ± 0.012"
    assert with_error(Metric(-12.3456, 2.51)) == "−12.3 ± 2.5"
    assert with_error(Metric(0.5, None)) == "0.5"
    assert difference(Paired(0.2071, 0.021, 0.01)) == "+0.207 ± 0.021"
    assert difference(Paired(-0.2071, 0.021, 0.01)) == "−0.207 ± 0.021"
    assert [p_value(p) for p in (1e-9, 0.004, 0.04, None)] == ["p < 0.001", "p = 0.004", "p = 0.04", "–"]
    assert [duration(s) for s in (48.2, 700, 11100, None)] == ["48 s", "12 min", "3 h 05 min", "–"]
    assert [number(v) for v in (0, 1234, 0.00012, 3e-7, -2)] == ["0", "1234", "0.00012", "3e−7", "−2"]


def test_smoothing_keeps_constants_and_straight_lines() -> None:
    assert smooth([3.0] * 50) == pytest.approx([3.0] * 50)
    line = [0.1 * index for index in range(200)]
    assert smooth(line)[20:180] == pytest.approx(line[20:180])  # a trend is not delayed
    noisy = [(-1.0) ** index for index in range(200)]
    assert max(map(abs, smooth(noisy)[10:190])) < 0.05


def test_thinning_keeps_ends_and_extremes() -> None:
    values = [math.sin(index / 40) for index in range(5000)]
    values[1234] = 9.0
    kept = thin(range(5000), values, 200)
    assert len(kept) <= 204
    assert kept[0][0] == 0
    assert kept[-1][0] == 4999
    assert (1234, 9.0) in kept


def test_pareto_front_against_the_definition() -> None:
    pairs = [(1.0, 5.0), (2.0, 4.0), (2.0, 3.0), (3.0, 4.5), (0.5, 5.5), (3.0, 1.0)]
    expected = {
        index for index, (x, y) in enumerate(pairs) if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in pairs)
    }
    assert set(pareto(pairs)) == expected


def parsed(svg: str) -> ET.Element:
    return ET.fromstring(svg)


@pytest.mark.parametrize("kind", ["run", "sweep"])
def test_figures_are_well_formed_labelled_and_inside_their_frame(kind: str, a_run: Story, a_sweep: Story) -> None:
    story = a_run if kind == "run" else a_sweep
    figures = [figure for figure in (diversity_figure(story), kl_figure(story), parallel_figure(story)) if figure]
    assert len(figures) == (2 if kind == "run" else 3)
    drawings = [svg for figure in figures for svg in (figure.wide, figure.narrow)]
    drawings += [panel.svg for panel in (*learning_panels(story), *adjoint_panels(story))]
    for svg in drawings:
        root = parsed(svg)
        assert root.get("aria-label")
        width, height = (float(part) for part in root.get("viewBox", "").split()[2:])
        for text in root.iter("text"):
            assert -1 <= float(text.get("x", 0)) <= width + 1
            assert 0 <= float(text.get("y", 0)) <= height
        assert "nan" not in svg


def test_every_run_is_in_the_tradeoff_with_the_mark_of_its_mode(a_sweep: Story) -> None:
    figure = kl_figure(a_sweep)
    assert figure is not None
    drawn = {mark.get("data-run"): mark.get("class") for mark in parsed(figure.wide).iter("g") if mark.get("data-run")}
    wanted = {entry.key: f"mark m{entry.mode.index}" for entry in a_sweep.entries if entry.run and entry.mode}
    assert drawn == wanted
    assert {mode.name for mode in a_sweep.modes} == {"CFG trajectories", "no guidance", "full CFG", "mixed"}


def test_a_mark_lies_where_its_numbers_say(a_run: Story) -> None:
    """Read pixels back through the ticks: two ticks define the axis, and the last mark must agree with the file."""
    figure = diversity_figure(a_run)
    assert figure is not None
    root = parsed(figure.wide)
    data = next(node for node in root.iter("g") if node.get("class") == "data")
    kind, low, high, start, end = data.get("data-y", "").split(",")
    mark = [node for node in root.iter("g") if node.get("data-run")][-1]
    spot = next(node for node in mark if node.get("class") == "spot")
    level = float(spot.get("transform", "").split("(")[1].split(")")[0].split()[1])
    value = float(low) + (level - float(start)) / (float(end) - float(start)) * (float(high) - float(low))
    run = a_run.runs[0]
    assert kind == "linear"
    assert value == pytest.approx(run.checkpoints[-1].evaluations[run.settings[0]].metrics[a_run.reward].mean, abs=1e-3)
