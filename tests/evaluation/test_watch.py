"""Every whole checkpoint is seen once, the last one included."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from amsd.evaluation.watch import new_checkpoints
from amsd.files import sha256
from amsd.run_directory import RunDirectory


def write_checkpoint(run: RunDirectory, step: int, damaged: bool = False) -> Path:
    folder = run.checkpoint(step)
    folder.mkdir(parents=True)
    (folder / "weights").write_text(str(step))
    files = {"weights": sha256(folder / "weights")}
    if damaged:
        (folder / "weights").write_text("other")
    (folder / "manifest.json").write_text(json.dumps({"step": step, "weights_sha256": "0" * 64, "files": files}))
    return folder


def test_old_ones_then_new_ones_then_the_end(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    write_checkpoint(run, 20)
    write_checkpoint(run, 10)
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 1:
            write_checkpoint(run, 30)

    found = list(new_checkpoints(run, lambda: len(naps) >= 2, interval=3.0, sleep=sleep))
    assert [path.name for path in found] == ["step-000010", "step-000020", "step-000030"]
    assert naps == [3.0, 3.0]


def test_a_checkpoint_written_just_before_the_end_is_not_missed(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)

    def finished() -> bool:
        write_checkpoint(run, 10)  # between the question and the look
        return True

    assert [path.name for path in new_checkpoints(run, finished, sleep=pytest.fail)] == ["step-000010"]


def test_damaged_incomplete_and_unwanted_ones_are_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = RunDirectory(tmp_path)
    write_checkpoint(run, 10, damaged=True)
    run.checkpoint(20).mkdir()
    write_checkpoint(run, 30)
    write_checkpoint(run, 40)
    with caplog.at_level(logging.WARNING):
        found = list(new_checkpoints(run, lambda: True, wanted=lambda path: path.name != "step-000030"))
    assert [path.name for path in found] == ["step-000040"]
    assert "weights does not match its sha256" in caplog.text
    assert caplog.text.count("so amsd skips it") == 1


def test_a_run_that_has_not_begun_is_waited_for(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "later")
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            write_checkpoint(run, 10)

    assert len(list(new_checkpoints(run, lambda: len(naps) >= 3, sleep=sleep))) == 1
