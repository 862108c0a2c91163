"""A backend may be slow, raise or hang: the training does not notice, and its end comes in time."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from amsd.errors import UsageError
from amsd.recipe import Tracking, from_dict
from amsd.tracking import BackgroundTracker, background
from amsd.tracking.backend import TABLE, TRACKERS, Announce, Backend
from amsd.tracking.entries import Entry
from amsd.tracking.protocol import RunInfo
from amsd.training.events import Notice
from tests.tracking import story


class Kept(Backend):
    def __init__(self, info: RunInfo, announce: Announce) -> None:
        self.entries: list[Entry] = []
        self.ended: tuple[str, str | None] | None = None
        self.freed = threading.Event()

    def log(self, entry: Entry) -> None:
        self.entries.append(entry)

    def close(self, status: str, error: str | None) -> None:
        self.ended = (status, error)


class Raising(Kept):
    def log(self, entry: Entry) -> None:
        super().log(entry)
        if len(self.entries) == 3:
            raise RuntimeError("it broke")


class Hanging(Kept):
    def log(self, entry: Entry) -> None:
        self.freed.wait()
        super().log(entry)


class Interruptible(Hanging):
    def interrupt(self) -> None:
        self.freed.set()


def played(folder: Path, kind: type[Kept], resumed_from: int | None = None) -> tuple[Kept, list[Notice], float]:
    said: list[Notice] = []
    tracker = BackgroundTracker("kept", said.append, lambda: kind)
    story.play(tracker, story.info(folder, resumed_from))
    begin = time.monotonic()
    tracker.on_end("finished", None)
    backend: Any = tracker._backend
    return backend, said, time.monotonic() - begin


def test_everything_arrives_in_order(tmp_path: Path) -> None:
    backend, said, _ = played(tmp_path, Kept)
    assert [(entry.axis, entry.position) for entry in backend.entries[:3]] == [
        ("eval/step", 0),
        ("step", 1),
        ("step", 2),
    ]
    assert [entry.position for entry in backend.entries if "loss" in entry.values] == [1, 2, 3, 4, 5, 6]
    assert backend.ended == ("finished", None)
    assert said == []


def test_what_raises_is_announced_once_and_left_alone(tmp_path: Path) -> None:
    backend, said, _ = played(tmp_path, Raising)
    assert [notice.kind for notice in said] == ["kept-failed"]
    assert "it broke" in said[0].text
    assert "metrics.jsonl" in said[0].text
    assert len(backend.entries) == 3
    assert backend.ended is None


@pytest.mark.parametrize(("kind", "kinds"), [(Hanging, ["kept-failed"]), (Interruptible, [])])
def test_what_hangs_is_interrupted_and_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Kept], kinds: list[str]
) -> None:
    monkeypatch.setattr(background, "CLOSE_PATIENCE", (0.3, 0.3, 0.3))
    backend, said, seconds = played(tmp_path, kind)
    backend.freed.set()
    assert seconds < 2
    assert [notice.kind for notice in said] == kinds
    if not kinds:
        assert backend.ended == ("finished", None)
        assert [entry.position for entry in backend.entries if "loss" in entry.values] == [1, 2, 3, 4, 5, 6]


def test_a_backend_opens_while_the_training_goes_on(tmp_path: Path) -> None:
    """It has all that was logged before it was open, and what it says then is announced at the next phase."""
    trained = threading.Event()

    class Slow(Kept):
        def __init__(self, info: RunInfo, announce: Announce) -> None:
            assert trained.wait(30)  # opening ends after the first step only
            super().__init__(info, announce)
            announce(Notice("slow", "it is open"))

    said: list[Notice] = []
    tracker = BackgroundTracker("slow", said.append, lambda: Slow)
    tracker.on_start(story.info(tmp_path))
    story.step(tracker, 1)
    assert said == []
    trained.set()
    assert tracker._opened.wait(30)
    tracker.on_phase("rollout", 2)
    assert [notice.text for notice in said] == ["it is open"]
    tracker.on_end("finished", None)
    backend: Any = tracker._backend
    assert [entry.position for entry in backend.entries] == [1]


@pytest.mark.parametrize(("status", "least"), [("finished", 0.4), ("interrupted", 0.0)])
def test_what_never_opens_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str, least: float
) -> None:
    """The end of a whole run waits for it as long as the start once did, an announced end does not."""
    monkeypatch.setattr(background, "OPEN_PATIENCE", 0.4)
    monkeypatch.setattr(background, "CLOSE_PATIENCE", (0.1, 0.1, 0.1))
    forever, said = threading.Event(), []

    class Never(Kept):
        def __init__(self, info: RunInfo, announce: Announce) -> None:
            forever.wait()

    tracker = BackgroundTracker("never", said.append, lambda: Never)
    tracker.on_start(story.info(tmp_path))
    begin = time.monotonic()
    tracker.on_end(status, None)
    assert least <= time.monotonic() - begin < 2
    assert [notice.kind for notice in said] == ["never-failed"]
    forever.set()


def test_a_missing_package_is_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TABLE, "trackio", "amsd.no_such_module:Backend")
    said: list[Notice] = []
    tracker = BackgroundTracker("trackio", said.append)
    story.play(tracker, story.info(tmp_path))
    tracker.on_end("finished", None)
    assert [notice.kind for notice in said] == ["trackio-failed"]
    assert "no_such_module" in said[0].text
    assert "uv pip install 'amsd[trackio]'" in said[0].text


def test_a_resumed_run_repeats_no_evaluation_and_no_notice(tmp_path: Path) -> None:
    """Pictures and tables are written once."""
    played(tmp_path, Kept)
    backend, _, _ = played(tmp_path, Kept, resumed_from=4)
    evaluations = [entry.position for entry in backend.entries if entry.axis == "eval/step"]
    assert evaluations == [6]  # not the base model's again
    assert [entry.notice for entry in backend.entries if entry.notice] == []


def test_names() -> None:
    assert {"wandb", "tensorboard", "trackio"} <= {*TRACKERS.shown()}
    with pytest.raises(UsageError, match=r"^here: 'tensorbord' is not a tracker\. Did you mean 'tensorboard'"):
        TRACKERS.require(["wandb", "tensorbord"], "here: ")
    assert Tracking.model_validate({"trackers": "none"}).trackers == ()
    assert Tracking.model_validate({"trackers": "tensorboard"}).trackers == ("tensorboard",)
    assert Tracking().trackers == ("wandb",)
    written = from_dict(story.info(Path()).recipe.model_dump(mode="json", exclude_none=True))
    assert written.tracking.trackers == ("wandb",)
