"""TensorBoard and trackio files, read back by their own tools; names of W&B runs from the environment."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from amsd.recipe import Tracking
from amsd.run_directory import RunDirectory
from amsd.tracking import BackgroundTracker
from amsd.tracking.entries import Picture
from amsd.tracking.names import Names
from amsd.training import checkpoint
from amsd.training.events import Notice
from tests.tracking import story


def played(folder: Path, name: str, resumed_from: int | None = None, last: int = 6) -> None:
    said: list[Notice] = []
    tracker = BackgroundTracker(name, said.append)
    story.play(tracker, story.info(folder, resumed_from, project="p", name="n"), last)
    tracker.on_end("finished", None)
    assert said == []


def test_tensorboard_reads_scalars_pictures_and_texts(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    played(tmp_path, "tensorboard", last=5)
    played(tmp_path, "tensorboard", resumed_from=4)  # step 5 again, and step 6
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    assert [point.step for point in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert [point.value for point in events.Scalars("loss")] == pytest.approx([10 / n for n in range(1, 7)])
    assert [point.step for point in events.Scalars("eval/shapes:right")] == [0, 2, 4, 6]
    assert events.Scalars("eval/shapes:right/difference")[-1].value == pytest.approx(0.6)
    pictures = events.Images(f"samples/{story.SETTING}")
    assert [(picture.step, picture.width, picture.height) for picture in pictures] == [(n, 8, 8) for n in (0, 2, 4, 6)]
    texts = {tag for tag in events.Tags()["tensors"] if tag.endswith("/text_summary")}
    assert {"recipe/text_summary", f"prompts/{story.SETTING}/text_summary", "notices/text_summary"} <= texts
    table = events.Tensors(f"prompts/{story.SETTING}/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert table.splitlines()[0] == "| step | prompt | shapes:right | diversity/shapes |"
    assert 'a "blue" square [bold]' in table


def test_trackio_reads_scalars_and_alerts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trackio = pytest.importorskip("trackio")
    played(tmp_path / "run", "trackio")
    (run,) = trackio.Api().runs("p")
    assert run.name == "n"
    rows = [row for row in trackio.SQLiteStorage.get_logs("p", "n") if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["loss"] for row in rows] == pytest.approx([10 / n for n in range(1, 7)])
    evaluations = [row for row in trackio.SQLiteStorage.get_logs("p", "n") if "eval/shapes:right" in row]
    assert [row["eval/step"] for row in evaluations] == [0, 2, 4, 6]
    assert evaluations[-1][f"samples/{story.SETTING}"]["_type"] == "trackio.image"
    assert [alert["title"] for alert in trackio.Api().alerts("p")] == ["reward-hacking"]


def test_names_come_from_the_recipe_then_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("PROJECT", "ENTITY", "RUN_GROUP", "NAME", "TAGS", "NOTES", "JOB_TYPE"):
        monkeypatch.delenv(f"WANDB_{variable}", raising=False)
    assert Names.of(Tracking()) == Names("amsd", None, None, None, (), None, None)
    for variable, value in {
        "PROJECT": "p", "ENTITY": "e", "RUN_GROUP": "g", "NAME": "n", "TAGS": "a, b,", "NOTES": "long", "JOB_TYPE": "t"
    }.items():  # fmt: skip
        monkeypatch.setenv(f"WANDB_{variable}", value)
    assert Names.of(Tracking()) == Names("p", "e", "g", "n", ("a", "b"), "long", "t")
    own = Tracking(project="P", entity="E", group="G", name="N", tags=(), notes="short", job_type="T")
    assert Names.of(own) == Names("P", "E", "G", "N", (), "short", "T")


def test_a_picture_is_found_while_its_checkpoint_is_deleted_and_after_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow backend comes to it late."""
    run = RunDirectory(tmp_path)
    path = story.grid(run.checkpoint(2) / "samples" / "setting")
    picture = Picture(path, "")
    seen = []
    settle = checkpoint._settle

    def watched(run: RunDirectory, gone: Path) -> None:
        seen.append(picture.image())
        settle(run, gone)

    monkeypatch.setattr(checkpoint, "_settle", watched)
    checkpoint.retire(run, 2)
    assert not path.exists()
    for image in (*seen, picture.image()):
        assert image is not None
        assert image.size == (8, 8)
    shutil.rmtree(run.path / "samples")
    assert picture.image() is None
