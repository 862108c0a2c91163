"""What every tracker must bear."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from amsd.recipe import Tracking
from amsd.tracking import BackgroundTracker, ConsoleTracker, JsonlTracker, Tracker, Trackers, standard
from amsd.training.events import Notice
from tests.tracking import story


class Recorder(Tracker):
    """Writes down the names of its calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("on_") and name not in type(self).__dict__:
            return lambda *values: self.calls.append(name)
        return super().__getattribute__(name)


def _terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=100)


def _sound(notice: Notice) -> None:
    assert not notice.kind.endswith("-failed"), notice.text


TRACKERS: dict[str, Callable[[], Tracker]] = {
    "jsonl": JsonlTracker,
    "console": lambda: ConsoleTracker(_terminal()),
    "pipe": lambda: ConsoleTracker(Console(file=io.StringIO())),
    "wandb": lambda: BackgroundTracker("wandb", _sound),
    "tensorboard": lambda: BackgroundTracker("tensorboard", _sound),
    "fan-out": lambda: Trackers([JsonlTracker(), ConsoleTracker(_terminal())]),
    "none": Tracker,
}


@pytest.fixture(params=TRACKERS)
def tracker(request: pytest.FixtureRequest) -> Tracker:
    return TRACKERS[request.param]()


class TestTracker:
    def test_whole_run(self, tracker: Tracker, tmp_path: Path) -> None:
        story.play(tracker, story.info(tmp_path))
        tracker.on_end("finished", None)

    def test_failure_before_the_first_step(self, tracker: Tracker, tmp_path: Path) -> None:
        tracker.on_start(story.info(tmp_path))
        tracker.on_end("failed", "reward is nan at step 1 [rollout]")

    def test_end_without_start(self, tracker: Tracker) -> None:
        tracker.on_end("failed", "the model could not be loaded")

    def test_not_finite_values(self, tracker: Tracker, tmp_path: Path) -> None:
        tracker.on_start(story.info(tmp_path))
        story.step(tracker, 1, math.nan)
        story.step(tracker, 2, -math.inf)
        tracker.on_end("interrupted", None)

    def test_resume(self, tracker: Tracker, tmp_path: Path) -> None:
        story.play(tracker, story.info(tmp_path, resumed_from=4))
        tracker.on_end("finished", None)

    def test_missing_picture_and_no_results(self, tracker: Tracker, tmp_path: Path) -> None:
        tracker.on_start(story.info(tmp_path))
        tracker.on_evaluation(0, [], {})
        tracker.on_evaluation(1, [story.result(story.SETTING, 0.1)], {story.SETTING: tmp_path / "absent.png"})
        tracker.on_end("finished", None)


def test_fan_out_tells_all_in_order_and_ends_all_in_reverse(tmp_path: Path) -> None:
    first, second = Recorder(), Recorder()
    story.play(Trackers([first, second]), story.info(tmp_path), last=3)
    assert first.calls == second.calls
    assert set(first.calls) == {"on_start", "on_phase", "on_step", "on_checkpoint", "on_evaluation", "on_notice"}

    ended: list[str] = []

    class Ending(Recorder):
        def __init__(self, name: str, failure: Exception | None) -> None:
            super().__init__()
            self.name, self.failure = name, failure

        def on_end(self, status: str, error: str | None) -> None:
            ended.append(self.name)
            if self.failure is not None:
                raise self.failure

    with pytest.raises(RuntimeError, match="disk"):
        Trackers([Ending("a", None), Ending("b", RuntimeError("disk"))]).on_end("finished", None)
    assert ended == ["b", "a"]


def test_standard_trackers_pass_on_what_wandb_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mode `auto` without a key: one notice, in the file and on the console."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "absent"))
    out = io.StringIO()
    tracker = standard(Console(file=out), Tracking())
    tracker.on_start(story.info(tmp_path, mode="auto"))
    tracker.on_notice(Notice("x", "y"))
    tracker.on_end("finished", None)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert sum("wandb-offline" in line and "no W&B key" in line for line in lines) == 1
    assert out.getvalue().count("wandb-offline") == 1
