"""What a sweep that runs here says while it runs."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from amsd.sweep.display import following, overview
from amsd.sweep.results import results_of
from amsd.sweep.study import create
from amsd.sweep.worker import Worker
from tests.sweep.conftest import MakePlan
from tests.sweep.formula import Formula


def test_in_a_pipe_every_change_is_one_line(make_plan: MakePlan, tmp_path: Path) -> None:
    handle = create(make_plan(), tmp_path)
    output = io.StringIO()
    with following(Console(file=output, width=80), lambda: results_of(handle)) as tick:
        tick()
        assert output.getvalue() == ""
        Worker(handle, Formula()).run()
        tick()
        tick()
    lines = output.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("trial 0 complete: shapes:right = ")
    assert "; eta = " in lines[0]
    assert lines[0].endswith("(3 of 3 done)")


def test_a_terminal_gets_a_table_that_goes_away(make_plan: MakePlan, tmp_path: Path) -> None:
    handle = create(make_plan(), tmp_path)
    output = io.StringIO()
    console = Console(file=output, width=100, height=40, force_terminal=True, legacy_windows=False)
    with following(console, lambda: results_of(handle)) as tick:
        Worker(handle, Formula()).run()
        tick()
    shown = output.getvalue()
    assert "small: 3 of 3 trials" in shown
    assert "complete" in shown


@pytest.mark.parametrize("trials", [11, 14])
def test_importance_comes_with_its_error_and_not_from_few_trials(
    trials: int, make_plan: MakePlan, tmp_path: Path
) -> None:
    handle = create(make_plan(budget={"trials": trials}), tmp_path)
    Worker(handle, Formula()).run()
    results = results_of(handle)
    console = Console(file=io.StringIO(), width=200, record=True)
    console.print(overview(results))
    shown = [line for line in console.export_text().splitlines() if line.startswith("Importance:")]
    if len(results.searched[0]) < 12:  # a point that was drawn twice counts once
        assert shown == []
    else:
        assert shown[0].count(" ± ") == len(results.importance) > 0
