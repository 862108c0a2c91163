"""Retention: a checkpoint goes as a whole, its results stay, whoever else is at work on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from amsd.run_directory import RunDirectory
from amsd.training import checkpoint as checkpoints
from amsd.training.checkpoint import discard_after, retain, retire


def write(run: RunDirectory, step: int) -> Path:
    folder = run.checkpoint(step)
    (folder / "evaluation").mkdir(parents=True)
    (folder / "samples" / "setting").mkdir(parents=True)
    (folder / "evaluation" / "setting.json").write_text(str(step))
    (folder / "samples" / "setting" / "grid.png").write_text(str(step))
    (folder / "manifest.json").write_text("{}")
    return folder


def left(run: RunDirectory, step: int) -> set[str]:
    places = (run.left_evaluation(step), run.left_samples(step))
    return {path.name for place in places for path in place.rglob("*") if path.is_file()}


def test_results_of_a_deleted_checkpoint_stay(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for step in (10, 20, 30):
        write(run, step)
    run.point("best", 20)
    retain(run, keep=1)
    assert run.steps() == [20, 30]
    assert left(run, 10) == {"setting.json", "grid.png"}
    assert not list(run.checkpoints.glob(".*"))


def test_results_written_after_the_deletion_join_the_earlier_ones(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    write(run, 10)
    retire(run, 10)
    late = run.checkpoint(10) / "evaluation"  # an evaluation elsewhere was still running, and makes the folder again
    late.mkdir(parents=True)
    (late / "other.json").write_text("late")
    retire(run, 10)
    assert left(run, 10) == {"setting.json", "other.json", "grid.png"}
    assert run.steps() == []


def test_killed_in_the_middle_of_a_deletion_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory(tmp_path)
    for step in (10, 20):
        write(run, step)

    def killed(run: RunDirectory, gone: Path) -> None:
        if gone.is_dir():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_settle", killed)
        with pytest.raises(KeyboardInterrupt):
            retire(run, 10)
    assert run.steps() == [20]  # out of sight at once
    discard_after(run, 20)  # what a resumed run does first
    assert left(run, 10) == {"setting.json", "grid.png"}
    assert not list(run.checkpoints.glob(".*"))
