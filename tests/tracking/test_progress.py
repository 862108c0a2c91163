"""In a pipe, progress is plain lines, and few of them."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.progress import Progress

from amsd.tracking.progress import INTERVAL, BarProgress, PlainProgress, progress


def test_a_pipe_gets_the_start_the_end_and_little_between() -> None:
    said: list[str] = []
    now = [0.0]
    report = PlainProgress(said.append, lambda: now[0])
    for done in range(1, 101):
        now[0] += INTERVAL / 25
        report("pictures", done, 100)
    assert said[0] == "pictures: 1 of 100"
    assert said[-1] == "pictures: 100 of 100"
    assert 4 <= len(said) <= 6
    report("more", 3, 9)
    assert said[-1] == "more: 3 of 9"


def test_lines_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with progress() as report:
        report("reading runs", 0, 0)
        report("pictures", 2, 2)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["reading runs ...", "pictures: 2 of 2"]


def test_a_terminal_gets_a_bar_with_counts_and_no_bar_of_what_is_over() -> None:
    bars = Progress(console=Console(force_terminal=True, file=io.StringIO()))
    report = BarProgress(bars)
    report("loading", 0, 0)
    assert [(task.description, task.total) for task in bars.tasks] == [("loading", None)]
    report("pictures", 3, 8)
    (task,) = bars.tasks
    assert (task.description, task.completed, task.total) == ("pictures", 3, 8)
    assert task.fields["count"] == "3 of 8"
