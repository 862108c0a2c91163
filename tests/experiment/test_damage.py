"""Every file of a run truncated, emptied, of another type or from a newer version: named, or an older state is used."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from amsd.cli.app import app
from amsd.errors import AmsdError, RunError, UsageError
from amsd.experiment.train import train
from amsd.files import DiskError, clear_unfinished, move_file, write_folder, write_text, writing
from amsd.recipe import Recipe, dump_toml, from_dict
from amsd.recipe.load import read_toml
from amsd.run_directory import FORMAT, RunDirectory, damage
from amsd.training.events import AnyCheckpoint
from amsd.training.keeper import Keeper
from benchmarks.fault_parts.damaging import damage_file
from tests.experiment.test_train import lines, recipe

KINDS = ("truncated", "emptied", "another type", "folder", "deleted")


@pytest.fixture(scope="module")
def chosen(model: Path) -> Recipe:
    return recipe(
        model,
        model={"pretrained": str(model), "parameterization": "lora"},
        training={"steps": 2, "checkpoint_every": 1, "keep": 5},
        evaluation={"samples_per_prompt": 1, "diversity": [], "prompts": 1, "images": 1},
    )


@pytest.fixture(scope="module")
def run(chosen: Recipe, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(chosen, folder, resume=False)
    return RunDirectory(folder)


def files_of(run: RunDirectory) -> Iterator[Path]:
    """Every file, of the newest checkpoint only."""
    for file in sorted(run.path.rglob("*")):
        if file.is_file() and "step-000001" not in file.parts:
            yield file.relative_to(run.path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_survived_or_named(chosen: Recipe, run: RunDirectory, tmp_path: Path, kind: str) -> None:
    raw: list[str] = []
    refused = 0
    for number, name in enumerate(files_of(run)):
        copy = tmp_path / str(number)
        shutil.copytree(run.path, copy)
        damage_file(copy / name, kind)
        shown = CliRunner().invoke(app, ["report", str(copy), "--html", str(tmp_path / "page.html")])
        if shown.exception is not None and not isinstance(shown.exception, (AmsdError, SystemExit)):
            raw.append(f"report, {name}: {shown.exception!r}")
        try:
            train(chosen, copy, resume=True)
        except AmsdError as error:
            refused += 1
            if not any(part in str(error) for part in (name.name, str(copy))):
                raw.append(f"{name}: does not name it: {error}")
        except Exception as error:  # noqa: BLE001  # that is what this test looks for
            raw.append(f"{name}: {error!r}")
        else:
            resumed = RunDirectory(copy)
            if [step for step in (1, 2) if damage(resumed.checkpoint(step))]:
                raw.append(f"{name}: a damaged checkpoint was left")
            # What the log itself lost cannot be told again; everything else leaves it as it was.
            if name != run.metrics.relative_to(run.path) and lines(copy) != lines(run.path):
                raw.append(f"{name}: the log differs")
        shutil.rmtree(copy)
    assert raw == []
    # The recipe and the log. A folder in a file's place is the user's: amsd names it, and deletes nothing.
    assert refused <= (2 if kind != "folder" else 8)


def test_newer_formats_are_refused(chosen: Recipe, run: RunDirectory, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    copy = RunDirectory(tmp_path / "run")
    manifest = copy.checkpoint(2) / "manifest.json"
    content = json.loads(manifest.read_text())
    assert content["format"] == FORMAT
    manifest.write_text(json.dumps(content | {"format": FORMAT + 1}))
    with pytest.raises(UsageError, match=rf"manifest\.json: its format {FORMAT + 1} is newer .*update amsd"):
        train(chosen, copy.path, resume=True)
    assert copy.steps() == [1, 2]  # nothing was deleted

    tree = read_toml(run.recipe)
    assert tree["format"] == 1
    assert dump_toml(from_dict(tree)) == run.recipe.read_text()
    for wrong in (2, "1", True, None):
        with pytest.raises(UsageError, match="update amsd"):
            from_dict(tree | {"format": wrong})


def test_older_manifests_without_a_format_are_read(run: RunDirectory, tmp_path: Path) -> None:
    shutil.copytree(run.checkpoint(2), tmp_path / "step-000002")
    manifest = tmp_path / "step-000002" / "manifest.json"
    content = json.loads(manifest.read_text())
    del content["format"]
    manifest.write_text(json.dumps(content))
    assert damage(tmp_path / "step-000002") is None
    manifest.write_text(json.dumps(content | {"files": {"../../outside": "0"}}))
    assert "manifest.json cannot be read" in str(damage(tmp_path / "step-000002"))


@pytest.mark.parametrize(("number", "advice"), [(28, "Make room"), (30, "writable"), (122, "Make room"), (5, "whole")])
def test_what_cannot_be_written_says_where_why_and_what_to_do(tmp_path: Path, number: int, advice: str) -> None:
    from safetensors import SafetensorError

    text = f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})"
    for cause in (OSError(number, os.strerror(number)), SafetensorError(text)):
        with pytest.raises(DiskError) as failure, writing(tmp_path / "step-000003"):
            raise cause
        assert str(failure.value).startswith(f"{tmp_path / 'step-000003'} cannot be written: {os.strerror(number)}. ")
        assert advice in str(failure.value)
        assert isinstance(failure.value, RunError)
        assert isinstance(failure.value, OSError)


@pytest.mark.parametrize(("umask", "usual"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_others_may_read_weights_as_the_umask_says(tmp_path: Path, umask: int, usual: int) -> None:
    """A library that writes files for their owner alone, as safetensors does, locks colleagues out."""

    def fill(folder: Path) -> None:
        (folder / "state").mkdir()
        save_file({"a": torch.zeros(1)}, folder / "state" / "weights.safetensors")
        (folder / "manifest.json").touch()

    before = os.umask(umask)
    try:
        write_folder(tmp_path / "step-000001", fill)
    finally:
        os.umask(before)
    modes = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.rglob("*") if file.is_file()}
    assert modes == {"weights.safetensors": usual, "manifest.json": usual}


@pytest.mark.parametrize("refused", [errno.EXDEV, errno.EROFS])
def test_a_file_moves_to_another_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: int) -> None:
    """Such as where `checkpoints` is a link to a scratch disk: results of a deleted checkpoint stay with the run."""
    rename = Path.replace

    def within_one_disk(source: Path, target: Path) -> Path:
        if source.parent != target.parent:
            raise OSError(refused, os.strerror(refused), str(source))
        return rename(source, target)

    monkeypatch.setattr(Path, "replace", within_one_disk)
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "a.json").write_text("new", encoding="utf-8")
    (tmp_path / "a.json").write_text("old", encoding="utf-8")
    if refused != errno.EXDEV:
        with pytest.raises(DiskError, match="cannot be written"):
            move_file(tmp_path / "scratch" / "a.json", tmp_path / "a.json")
        return
    move_file(tmp_path / "scratch" / "a.json", tmp_path / "a.json")
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == "new"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.json", "scratch"]


def test_an_export_does_not_replace_what_another_one_has_written(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "mine").touch()
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").touch()  # meanwhile

    with pytest.raises(UsageError, match="already exists"):
        write_folder(tmp_path / "out", fill, replace=False)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "theirs"]


def test_what_killed_processes_left_is_cleared(tmp_path: Path) -> None:
    left = [".recipe.toml.123.tmp", "checkpoints/.step-000004.99.tmp", "checkpoints/.parts-000004", "samples/.x.7.tmp"]
    kept = ["checkpoints/.gone-000002", ".hidden", "wandb/a.tmp"]
    for name in [*left, *kept]:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").touch()
    write_text(tmp_path / "checkpoints" / "best", "step-000001\n")
    clear_unfinished(tmp_path)
    assert [name for name in left if (tmp_path / name).exists()] == []
    assert [name for name in kept if not (tmp_path / name).exists()] == []
    assert (tmp_path / "checkpoints" / "best").is_file()


def test_what_a_killed_export_left_goes_with_the_next(tmp_path: Path) -> None:
    """Of dead processes all goes; what living ones write, and what only looks alike, stays."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for name in (f".out.{dead.pid}.tmp", f".out.{os.getppid()}.tmp", ".out.x.tmp", f".out[1].{dead.pid}.tmp"):
        (tmp_path / name).mkdir()
    write_folder(tmp_path / "out", lambda folder: (folder / "file").touch())
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"out", f".out.{os.getppid()}.tmp", ".out.x.tmp", f".out[1].{dead.pid}.tmp"}
    write_folder(tmp_path / "out[1]", lambda folder: (folder / "file").touch())
    assert f".out[1].{dead.pid}.tmp" not in {path.name for path in tmp_path.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("where", ["checkpoint", "evaluation", "log", "cache"])
def test_a_full_disk_ends_the_run_with_one_message_and_a_resume_goes_on(
    chosen: Recipe, run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """The operating system refuses every write to one place while step 2 is written, as a full disk does."""
    target = RunDirectory(tmp_path / "run")
    place = {
        "checkpoint": str(target.checkpoints / ".step-000002"), "evaluation": "/step-000002/evaluation",
        "log": "metrics.jsonl", "cache": str(tmp_path / "cache"),
    }[where]  # fmt: skip
    monkeypatch.setenv("AMSD_CACHE", str(tmp_path / "cache"))
    opened = Path.open

    def full(self: Path, mode: str = "r", *given: object, **named: object) -> object:
        if place in str(self) and mode != "r" and mode != "rb" and (where != "log" or len(target.steps()) == 1):
            raise OSError(28, "No space left on device", str(self))
        return opened(self, mode, *given, **named)  # type: ignore[call-overload]

    if where == "log":
        from amsd.tracking.jsonl import JsonlTracker

        write = JsonlTracker._write

        def refused(self: JsonlTracker, entry: dict[str, object]) -> None:
            with writing(self._path):
                if entry["step"] == 2:
                    raise OSError(28, "No space left on device")
            write(self, entry)

        monkeypatch.setattr(JsonlTracker, "_write", refused)
    else:
        monkeypatch.setattr(Path, "open", full)
    if where == "cache":
        train(chosen, target.path, resume=False)  # a cache that cannot be written is announced, not fatal
        told = [line["text"] for line in lines(target.path) if line.get("notice") == "damaged-cache"]
        assert told
        assert "No space left" in told[0]
        return
    said = r"/run/.* cannot be written: No space left on device\. Make room there"
    with pytest.raises(RunError, match=said) as failure:
        train(chosen, target.path, resume=False)
    assert "resume=True goes on" in str(failure.value)
    assert target.steps() == ([1, 2] if where == "evaluation" else [1])
    assert damage(target.checkpoint(1)) is None
    monkeypatch.undo()
    monkeypatch.setenv("AMSD_CACHE", str(tmp_path / "cache2"))
    train(chosen, target.path, resume=True)
    assert lines(target.path) == lines(run.path)
    assert not list(target.path.rglob(".*"))


@pytest.mark.parametrize("moved", [True, False])
def test_a_run_that_is_moved_or_deleted_while_it_trains_says_so(
    chosen: Recipe, run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: bool
) -> None:
    """Its later checkpoints would else lie at a second place, without log and recipe."""
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    write = Keeper.write

    def then_gone(self: Keeper, step: int) -> AnyCheckpoint:
        record = write(self, step)
        self.finish()
        folder.rename(elsewhere) if moved else shutil.rmtree(folder)
        return record

    monkeypatch.setattr(Keeper, "write", then_gone)
    with pytest.raises(RunError, match=f"{folder} was moved or deleted while it was being trained"):
        train(chosen, folder, resume=False)
    monkeypatch.undo()
    assert RunDirectory(folder).pointer("latest") is None
    if moved:
        train(chosen, elsewhere, resume=True)
        assert lines(elsewhere) == lines(run.path)
