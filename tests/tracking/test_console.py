from __future__ import annotations

import io
import itertools
from pathlib import Path

from rich.console import Console

from amsd.tracking import ConsoleTracker
from amsd.training.events import Notice, StepRecord
from tests.tracking import story

SECONDS = 7


def play(folder: Path, console: Console, last: int = 6) -> ConsoleTracker:
    """A run on a clock that moves by 7 s whenever it is read."""
    ticks = itertools.count(0, SECONDS)
    tracker = ConsoleTracker(console, clock=lambda: float(next(ticks)))
    story.play(tracker, story.info(folder), last)
    return tracker


def test_pipe_gets_plain_single_lines(tmp_path: Path) -> None:
    out = io.StringIO()
    tracker = play(tmp_path, Console(file=out, width=40))
    tracker.on_end("finished", None)
    text = out.getvalue()
    assert "\x1b" not in text
    lines = text.splitlines()
    steps = [line for line in lines if line.startswith("step ")]
    assert len(steps) == 6
    assert steps[2] == "step 3/6  reward 0.3  loss 3.333  KL 0.03  0:00:21 left (7 s/step)"
    assert [line for line in lines if line.startswith("checkpoint")] == [f"checkpoint step-00000{n}" for n in (2, 4, 6)]
    assert f"evaluation step 2 · {story.SETTING} · shapes:right 0.800 ± 0.011, +0.200 ± 0.013 to base" in lines
    assert "reward-hacking (step 3): the reward [rose] while 50% fell" in lines  # no markup, no wrapping
    assert lines[-1] == "finished at step 6/6"


def test_terminal_shows_phase_progress_values_and_last_evaluation(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    tracker = play(tmp_path, console, last=5)
    tracker.on_phase("adjoint", 6)
    assert tracker._live is not None
    screen = Console(file=io.StringIO(), width=100, record=True)
    screen.print(tracker._live.renderable)
    tracker.on_end("failed", "loss is nan")
    shown = screen.export_text()
    for expected in ("5/6", "adjoint", "0:00:07 left", "reward 0.5", "loss 2", "KL 0.05", "evaluation of step 4"):
        assert expected in shown
    assert "+0.400 ± 0.013" in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_terminal_keeps_events_above_the_display_and_no_line_per_step(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, record=True)
    tracker = play(tmp_path, console)
    tracker.on_notice(Notice("damaged-cache", "computed again"))
    tracker.on_end("finished", None)
    kept = console.export_text()
    assert "damaged-cache: computed again" in kept
    assert "finished at step 6/6" in kept
    assert "step 3/6" not in kept
    assert "evaluation of step" not in kept  # the command prints the whole table below


def test_narrow_terminal(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=30)
    play(tmp_path, console).on_end("interrupted", None)


def test_end_before_start_says_so() -> None:
    out = io.StringIO()
    ConsoleTracker(Console(file=out)).on_end("failed", "no such model")
    assert out.getvalue() == "failed at step 0/0\n"


def test_time_left_forgets_a_slow_first_step(tmp_path: Path) -> None:
    """Mean over the last ten steps: 60 s once and 2 s after it are (60 + 9 x 2) / 10, and then 2 s."""
    now = [0.0]
    out = io.StringIO()
    tracker = ConsoleTracker(Console(file=out, width=40), clock=lambda: now[0])
    info = story.info(tmp_path)
    tracker.on_start(info)
    for step in range(1, 12):
        now[0] += 60.0 if step == 1 else 2.0
        tracker.on_step(StepRecord(step, {"loss": 1.0}))
    rates = [line.rpartition("(")[2] for line in out.getvalue().splitlines() if line.startswith("step ")]
    assert [rates[0], rates[9], rates[10]] == ["60 s/step)", "7.8 s/step)", "2 s/step)"]
