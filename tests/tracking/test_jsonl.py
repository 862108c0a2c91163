from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest

from amsd.errors import RunError
from amsd.tracking import JsonlTracker
from amsd.training.events import Notice
from tests.tracking import story


def refuse(constant: str) -> Any:
    raise ValueError(f"not JSON: {constant}")


def lines(folder: Path) -> list[dict[str, Any]]:
    """The file's objects by a strict reader, without the time."""
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    entries = [json.loads(line, parse_constant=refuse) for line in text.splitlines()]
    assert all(isinstance(entry.pop("time"), (int, float)) for entry in entries)
    return entries


def tracker() -> JsonlTracker:
    return JsonlTracker(clock=itertools.count(1000.0).__next__)


def whole(folder: Path) -> list[dict[str, Any]]:
    """The file of a run that was never interrupted."""
    one = tracker()
    story.play(one, story.info(folder))
    one.on_end("finished", None)
    return lines(folder)


def test_lines_have_the_promised_keys(tmp_path: Path) -> None:
    entries = whole(tmp_path)
    steps = [entry for entry in entries if "loss" in entry]
    assert [entry["step"] for entry in steps] == [1, 2, 3, 4, 5, 6]
    assert steps[1] == {
        "step": 2, "loss": 5.0, "reward/mean": 0.2, "kl": 0.02, "learning_rate": 1e-5, "seconds/rollout": 0.5
    }  # fmt: skip
    base, evaluation = (next(e for e in entries if e["step"] == at and e.get("evaluation")) for at in (0, 2))
    assert base == {
        "step": 0, "evaluation": story.SETTING,
        "eval/shapes:right": pytest.approx(0.6), "eval/shapes:right/standard_error": 0.011,
        "eval/diversity/shapes": 0.4,
    }  # fmt: skip
    assert evaluation["eval/shapes:right/difference"] == 0.2
    assert evaluation["eval/shapes:right/difference_standard_error"] == 0.013
    assert evaluation["eval/shapes:right/p_value"] == 1e-6
    notice = next(e for e in entries if "notice" in e)
    assert notice == {
        "step": 3, "notice": "reward-hacking", "text": "the reward [rose] while 50% fell", "values": {"x/y": -0.1}
    }  # fmt: skip


@pytest.mark.parametrize("killed_after", [1, 2, 3, 4, 5, 6])
def test_killed_and_resumed_reads_as_one_run(tmp_path: Path, killed_after: int) -> None:
    """Checkpoints are at 2, 4, 6; the run dies (no `on_end`) and continues from the newest of them, or anew."""
    expected = whole(tmp_path / "whole")
    folder = tmp_path / "killed"
    story.play(tracker(), story.info(folder), last=killed_after)
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 1, "lo')  # torn by the crash
    again = tracker()
    start = story.info(folder, resumed_from=killed_after // 2 * 2 or None)
    again_from = start.resumed_from or 0
    story.play(again, start)
    if again_from:  # a trainer evaluates a checkpoint again if it cannot know that it did
        story.evaluate(again, start.run, again_from, 0.1 * again_from)
    again.on_end("finished", None)
    assert lines(folder) == expected


def test_failure_is_written_and_disappears_with_the_resume(tmp_path: Path) -> None:
    failing = tracker()
    story.play(failing, story.info(tmp_path), last=4)
    failing.on_end("failed", "loss is nan")
    assert lines(tmp_path)[-1] == {"step": 5, "notice": "failed", "text": "loss is nan"}
    again = tracker()
    again.on_start(story.info(tmp_path, resumed_from=4))
    again.on_end("finished", None)
    assert "failed" not in (tmp_path / "metrics.jsonl").read_text()


def test_another_evaluation_of_the_same_step_is_added(tmp_path: Path) -> None:
    one = tracker()
    one.on_start(story.info(tmp_path))
    for gain in (0.1, 0.1, 0.2):
        one.on_evaluation(2, [story.result(story.SETTING, gain)], {})
    one.on_end("finished", None)
    assert [entry["eval/shapes:right/difference"] for entry in lines(tmp_path)] == [0.1, 0.2]


def test_not_finite_values_are_null(tmp_path: Path) -> None:
    one = tracker()
    one.on_start(story.info(tmp_path))
    for number, value in enumerate((math.nan, math.inf, -math.inf, 1.5), start=1):
        story.step(one, number, value)
    one.on_notice(Notice("x", "ünïcode\nsecond line", 4, {"value": math.nan}))
    one.on_end("finished", None)
    entries = lines(tmp_path)
    assert [entry["loss"] for entry in entries[:4]] == [None, None, None, 1.5]
    assert entries[4] == {"step": 4, "notice": "x", "text": "ünïcode\nsecond line", "values": {"value": None}}


def test_every_line_is_on_disk_at_once(tmp_path: Path) -> None:
    one = tracker()
    one.on_start(story.info(tmp_path))
    for number in (1, 2, 3):
        story.step(one, number)
        assert [entry["step"] for entry in lines(tmp_path)] == list(range(1, number + 1))
    one.on_end("finished", None)


def test_unusable_file_is_a_run_error(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(RunError, match=r"metrics\.jsonl"):
        tracker().on_start(story.info(tmp_path))


def test_full_disk_is_a_run_error(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full on this system")
    (tmp_path / "metrics.jsonl").symlink_to(full)
    one = tracker()
    one.on_start(story.info(tmp_path))
    with pytest.raises(RunError, match="No space left"):
        story.step(one, 1)


def test_what_was_said_after_a_later_step_is_said_again(tmp_path: Path) -> None:
    """Also where it bears no step: else it would stand before the step that made it be said."""
    start = story.info(tmp_path)
    for resumed_from in (None, 0):
        tracker = JsonlTracker()
        tracker.on_start(story.info(tmp_path, resumed_from) if resumed_from is not None else start)
        story.evaluate(tracker, start.run, 0, None)
        story.step(tracker, 1)
        tracker.on_notice(Notice("all-masked", "nothing was learned"))
        story.step(tracker, 2)
        tracker.on_end("failed" if resumed_from is None else "finished", "full" if resumed_from is None else None)
    lines = [json.loads(line) for line in start.run.metrics.read_text(encoding="utf-8").splitlines()]
    told = [line.get("notice") or line.get("evaluation") or line["step"] for line in lines]
    assert told[-3:] == [1, "all-masked", 2]
    assert told.count("all-masked") == 1
