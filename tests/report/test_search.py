"""How a sweep was searched: history, timeline, slices, importance with its error, links."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path

import pytest

from amsd.evaluation.result import Paired
from amsd.report.figures.scale import Scale
from amsd.report.figures.search import history_figure, slice_panels, timeline_figure
from amsd.report.numbers import difference
from amsd.report.page import render
from amsd.report.story import Story
from amsd.report.sweep_story import story_of
from amsd.report.tables import trial_table
from amsd.report.winner import headline
from amsd.sweep.algorithms import MIN_TRIALS, importance
from amsd.sweep.search import Dimension
from tests.report.synthetic import HELD_OUT, REWARD, write_sweep

NUMBER = r"-?\d+(?:\.\d+)?"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Story:
    return story_of(write_sweep(tmp_path_factory.mktemp("search") / "sweep", seeds=(0,), pictures=False))


def test_history_shows_every_trial_with_a_value_and_the_best_so_far(sweep: Story) -> None:
    figure = history_figure(sweep)
    assert figure is not None
    valued = {entry.trial for entry in sweep.entries if entry.objective is not None}
    assert figure.wide.count('class="mark ') == len(valued)
    stairs = re.search(r'<path d="([^"]+)" class="front"', figure.wide)
    assert stairs is not None
    levels = [float(level) for level in re.findall(rf"[V ]({NUMBER})(?=[HV]|$)", stairs[1])]
    assert levels == sorted(levels, reverse=True)  # pixels grow downwards: the best only rises
    best = max(entry.objective for entry in sweep.entries if entry.objective is not None)
    assert f"{best:.3g}" in figure.wide


def test_an_infeasible_trial_is_never_the_best_so_far(sweep: Story) -> None:
    best = max(
        (entry for entry in sweep.entries if entry.objective is not None), key=lambda entry: entry.objective or 0
    )
    entries = tuple(replace(entry, feasible=entry.trial != best.trial) for entry in sweep.entries)
    without = history_figure(replace(sweep, entries=entries))
    before = history_figure(sweep)
    assert without is not None
    assert before is not None
    stairs = [re.search(r'<path d="([^"]+)" class="front"', figure.wide) for figure in (before, without)]
    assert stairs[0] is not None
    assert stairs[1] is not None
    assert stairs[0][1] != stairs[1][1]
    assert "breaks a constraint" in without.wide


def test_timeline_has_a_bar_for_each_trial_that_began(sweep: Story) -> None:
    figure = timeline_figure(sweep)
    assert figure is not None
    begun = {entry.trial: entry for entry in sweep.entries if entry.started is not None}
    widths = [float(width) for width in re.findall(rf'width="({NUMBER})" height="9"', figure.wide)]
    assert len(widths) == len(begun)
    assert max(widths) - min(widths) < 0.2  # every trial of the synthetic sweep takes three minutes


def test_slices_show_the_objective_over_each_searched_key(sweep: Story) -> None:
    panels = slice_panels(sweep)
    assert [panel.title for panel in panels] == [axis.key for axis in sweep.axes]
    assert "adjoint only" in panels[0].svg
    assert all(panel.svg.count('class="mark ') >= 8 for panel in panels)


def test_importance_finds_the_key_that_matters_and_says_how_sure_it_is() -> None:
    chance = random.Random(1)
    search = {"a": Dimension(low=0.0, high=1.0), "b": Dimension(low=0.0, high=1.0), "c": Dimension(choices=(1, 2))}
    points = [{"a": chance.random(), "b": chance.random(), "c": chance.choice((1, 2))} for _ in range(40)]
    found = importance(search, points, [point["a"] for point in points], maximize=True)
    assert set(found) == {"a", "b", "c"}
    assert sum(share for share, _ in found.values()) == pytest.approx(1.0)
    (share, error), (noise, _) = found["a"], found["b"]
    assert share > 0.7
    assert 0 < error < share / 3
    assert noise < 0.2
    few = points[: MIN_TRIALS - 1]
    assert importance(search, few, [point["a"] for point in few], maximize=True) == {}


def test_the_table_has_held_out_metrics_and_leads_to_the_trials_folders(sweep: Story, tmp_path: Path) -> None:
    table = trial_table(sweep)
    assert HELD_OUT in table.heads
    row = next(row for row in table.rows if row.key == "t0s0")
    assert row.cells[0].link == "trials/0000-seed0/"
    assert (sweep.path / row.cells[0].link).is_dir()
    assert row.cells[table.heads.index(HELD_OUT)].text != "–"
    run = next(entry.run for entry in sweep.entries if entry.key == "t0s0")
    assert run is not None
    linked = replace(run, address="https://wandb.example/me/amsd/runs/1")
    entries = tuple(replace(entry, run=linked) if entry.key == "t0s0" else entry for entry in sweep.entries)
    assert 'href="https://wandb.example/me/amsd/runs/1"' in render(replace(sweep, entries=entries))


def test_the_title_is_a_sentence_with_the_result(a_run: Story, sweep: Story) -> None:
    assert re.fullmatch(rf"Fine-tuning raised {REWARD} by 0\.\d+ ± 0\.\d+", headline(a_run))
    assert re.fullmatch(rf"Of \d+ trials, trial \d+ has the highest {REWARD}: 0\.\d+ ± 0\.\d+", headline(sweep))


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 6, 7, 13, 25, 60, 1000])
def test_no_tick_stands_between_two_steps(steps: int) -> None:
    ticks = Scale(0, steps * 1.06, 0, 100, whole=True).ticks(5)
    assert len(ticks) >= 2
    assert all(tick == round(tick) for tick in ticks)


def test_small_differences_are_readable_with_one_sign() -> None:
    assert difference(Paired(-1.8e-5, 2.3e-5, None)) == "(−1.8 ± 2.3) × 10⁻⁵"
    assert difference(Paired(1.8e-5, 2.3e-5, None)) == "(+1.8 ± 2.3) × 10⁻⁵"
    assert difference(Paired(0.21, 0.02, None)) == "+0.210 ± 0.020"
    assert difference(Paired(-0.2, None, None)) == "−0.2"
