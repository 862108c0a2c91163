"""Run directories: which one a training gets, what counts as a run, and what a pointer may name."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from amsd.cli.train import _place
from amsd.errors import UsageError
from amsd.recipe import load_recipe
from amsd.run_directory import (
    RunDirectory,
    default_output,
    newest,
    numbered,
    picture_places,
    resolve_checkpoint,
    vacant,
)


def started(run: Path) -> Path:
    """A run with one logged step."""
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n', encoding="utf-8")
    return run


def test_a_second_run_of_a_name_gets_the_next_number(tmp_path: Path) -> None:
    name = tmp_path / "shapes-eta1.0"
    assert vacant(name) == newest(name) == name
    for number in (1, 2, 3):
        chosen = vacant(name)
        assert chosen == numbered(name, number)
        assert chosen.name == ("shapes-eta1.0" if number == 1 else f"shapes-eta1.0-{number}")
        started(chosen)
        assert newest(name) == chosen


def test_a_folder_that_was_deleted_is_used_again_and_the_newest_is_that_before_the_gap(tmp_path: Path) -> None:
    name = tmp_path / "run"
    for number in (1, 3):
        started(numbered(name, number))
    assert vacant(name) == numbered(name, 2)
    assert newest(name) == name  # what lies beyond a gap is somebody's own name


@pytest.mark.parametrize("left", ["nothing", "a lock", "a log of notices", "the recipe of a start", "an empty folder"])
def test_a_start_that_failed_takes_no_number(left: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    if left != "nothing":
        run.mkdir()
    if left == "a lock":
        (run / "lock").write_text("{}", encoding="utf-8")
    elif left == "a log of notices":
        (run / "metrics.jsonl").write_text('{"step": 0, "notice": "code", "text": "x"}\n', encoding="utf-8")
    elif left == "the recipe of a start":
        (run / "recipe.toml").write_text('origin = "/somewhere"\n', encoding="utf-8")
    assert not RunDirectory(run).used
    assert vacant(run) == run
    RunDirectory(run).require_unused()


@pytest.mark.parametrize("left", ["a step", "a checkpoint", "somebody's recipe"])
def test_what_is_a_run_is_protected(left: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    if left == "a step":
        started(run)
    elif left == "a checkpoint":
        (run / "checkpoints" / "step-000004").mkdir(parents=True)
    else:
        run.mkdir()
        (run / "recipe.toml").write_text('[[reward]]\nname = "brightness"\n', encoding="utf-8")
    with pytest.raises(UsageError, match=r"already holds a run\. Continue it with resume=True"):
        RunDirectory(run).require_unused()
    assert vacant(run) == tmp_path / "run-2"


def test_the_command_takes_a_new_folder_and_resumes_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("shapes")
    named = default_output(recipe, "shapes")
    assert _place(recipe, "recipes/shapes.toml", resume=False, several=False) == named
    started(named)
    second = _place(recipe, "shapes", resume=False, several=False)
    assert second == numbered(named, 2)
    started(second)
    assert _place(recipe, "shapes", resume=True, several=False) == second
    # Each of several processes would find another free folder.
    assert _place(recipe, "shapes", resume=False, several=True) == named
    other = load_recipe("shapes", ["training.seed=7"])
    assert _place(other, "shapes", resume=False, several=False) == default_output(other, "shapes") != named


@pytest.mark.parametrize(
    "name", ["step-4", "step-0000004", "step-٠٠٠٠٠٤", "step-000004x", ".step-000004", "step-" + 30 * "9"]
)
def test_only_folders_as_amsd_writes_them_are_checkpoints(name: str, tmp_path: Path) -> None:
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        pytest.skip("this file system's encoding (LC_ALL=C without UTF-8 mode) has no name for the folder")
    (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert RunDirectory(tmp_path).steps() == []
    (tmp_path / "checkpoints" / "step-000004").mkdir()
    (tmp_path / "checkpoints" / "step-1000000").mkdir()
    assert RunDirectory(tmp_path).steps() == [4, 1_000_000]


@pytest.mark.parametrize(
    "content", ["", "step-000009", "../../elsewhere", "/etc", "step-000004/../..", "\0", 5000 * "x"]
)
def test_a_pointer_names_a_checkpoint_of_its_run_or_nothing(content: str, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.checkpoint(4).mkdir(parents=True)
    (run.checkpoints / "best").write_text(content, encoding="utf-8")
    assert run.pointer("best") is None
    run.point("best", 4)
    assert run.pointer("best") == run.checkpoint(4)
    (run.checkpoint(4) / "manifest.json").write_text(json.dumps({}), encoding="utf-8")
    assert resolve_checkpoint(tmp_path) == resolve_checkpoint(run.checkpoints / "best") == run.checkpoint(4)


@pytest.mark.parametrize("damaged", [("best", "latest"), ("best",), ("latest",)])
def test_a_run_whose_pointers_are_lost_has_its_newest_checkpoint(
    damaged: tuple[str, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunDirectory(tmp_path)
    for step in (2, 4, 6):
        run.checkpoint(step).mkdir(parents=True)
        if step < 6:  # the last one is half deleted
            (run.checkpoint(step) / "manifest.json").write_text("{}", encoding="utf-8")
    run.point("best", 2)
    run.point("latest", 4)
    assert resolve_checkpoint(tmp_path) == run.checkpoint(2)
    assert not caplog.text
    for name in damaged:
        (run.checkpoints / name).write_text("step-9", encoding="utf-8")
    step = 2 if damaged == ("latest",) else 4
    assert resolve_checkpoint(tmp_path) == run.checkpoint(step)
    assert f"does not name a checkpoint; amsd takes step-{step:06d}" in caplog.text
    for name in ("best", "latest"):
        (run.checkpoints / name).unlink()
    assert resolve_checkpoint(tmp_path) == run.checkpoint(4)


def test_pictures_of_a_checkpoint_have_three_places_and_others_one(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    picture = run.checkpoint(40) / "samples" / "a" / "grid.png"
    gone = run.checkpoints / ".gone-000040" / "samples" / "a" / "grid.png"
    assert picture_places(picture) == (picture, gone, run.left_samples(40) / "a" / "grid.png")
    other = run.base_samples / "a" / "grid.png"
    assert picture_places(other) == (other,)
