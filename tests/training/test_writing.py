"""Checkpoints are written while training goes on, and are those of their step."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from amsd.ends import AnnouncedEnd
from amsd.errors import RunError
from amsd.evaluation.drawing import Painter
from amsd.experiment.train import train
from amsd.files import write_nothing
from amsd.recipe import Recipe
from amsd.run_directory import RunDirectory, damage
from amsd.tracking.jsonl import JsonlTracker
from amsd.training import keeper, writing
from amsd.training.checkpoint import CheckpointScores
from amsd.training.events import StepRecord
from amsd.training.writing import CheckpointWriter, Parts
from tests.experiment.test_train import lines, merged
from tests.training.threads import as_processes

PATIENCE = 60.0


def short(model: Path, evaluated: bool = False, **training: Any) -> Recipe:
    """Four steps with a buffer and an average; checkpoints after the second and the last."""
    buffer = {"name": "buffer-am", "timesteps_per_trajectory": 1, "buffer": {"size": 4, "passes": 3}}
    settings = {"steps": 4, "checkpoint_every": 2, "keep": 5, "ema_decay": 0.9}
    return merged(model, {"method": buffer, "training": settings | training, "evaluation": {"every": int(evaluated)}})


class Held:
    """Lets the writing of the checkpoint of step 2 go on only after something else has happened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.happened = threading.Event()
        self.in_time: list[bool] = []
        original = writing._put_in_place

        def put(run: RunDirectory, parts: Parts, *rest: Any) -> None:
            if parts.step == 2:
                self.in_time.append(self.happened.wait(PATIENCE))
            original(run, parts, *rest)

        monkeypatch.setattr(writing, "_put_in_place", put)


def test_training_goes_on_and_the_checkpoint_is_that_of_its_step(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(short(model, background_checkpoints=False), tmp_path / "waiting", resume=False)
    held, on_step = Held(monkeypatch), JsonlTracker.on_step

    def told(self: JsonlTracker, record: StepRecord) -> None:
        on_step(self, record)
        if record.step == 3:
            assert RunDirectory(tmp_path / "run").steps() == []  # absent, and not half
            held.happened.set()

    monkeypatch.setattr(JsonlTracker, "on_step", told)
    train(short(model), tmp_path / "run", resume=False)
    assert held.in_time == [True]
    assert lines(tmp_path / "run") == lines(tmp_path / "waiting")
    for step in (2, 4):
        one, other = (RunDirectory(tmp_path / name).checkpoint(step) for name in ("run", "waiting"))
        assert damage(one) is None
        files = [path.relative_to(other) for path in sorted(other.rglob("*")) if path.is_file()]
        assert [path.relative_to(one) for path in sorted(one.rglob("*")) if path.is_file()] == files
        for file in files:
            if file.name != "recipe.toml":
                assert (one / file).read_bytes() == (other / file).read_bytes() or file.name == "manifest.json", file


def test_an_evaluation_draws_meanwhile_and_its_results_come_after(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMSD_CACHE", str(tmp_path / "cache"))  # the base model is drawn, and not remembered
    run, held, draw = RunDirectory(tmp_path / "run"), Held(monkeypatch), Painter.draw
    drawn: list[list[int]] = []

    def drawing(self: Painter, *given: Any) -> Any:
        found = draw(self, *given)
        drawn.append(run.steps())
        if len(drawn) == 2:  # the base model came first
            held.happened.set()
        return found

    monkeypatch.setattr(Painter, "draw", drawing)
    train(short(model, evaluated=True), run.path, resume=False)
    assert drawn[:2] == [[], []]
    assert held.in_time == [True]
    for step in (2, 4):
        assert damage(run.checkpoint(step)) is None
        assert list((run.checkpoint(step) / "evaluation").glob("*.json"))
    scores = CheckpointScores(run).read()
    assert run.pointer("best") == run.checkpoint(max(scores, key=lambda step: scores[step]))


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("evaluated", [True, False])
def test_what_cannot_be_written_ends_the_run_alike(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    background: bool,
    evaluated: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    chosen = short(model, evaluated, steps=40, checkpoint_every=1, background_checkpoints=background)
    run, original = RunDirectory(tmp_path / "run"), writing.sha256

    def full(path: Path) -> str:
        if "step-000002" in str(path) or "parts-000002" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(path)

    monkeypatch.setattr(writing, "sha256", full)
    with pytest.raises(RunError) as error:
        train(chosen, run.path, resume=False)
    said = (
        f"{run.checkpoint(2)} cannot be written: No space left on device. Make room there (a lower training.keep needs"
    )
    assert str(error.value).startswith(said)
    assert caplog.text == ""  # and is said once
    assert run.steps() == [1]
    assert run.pointer("latest") == run.checkpoint(1)
    assert not list(run.checkpoints.glob(".*"))
    assert lines(run.path)[-1]["notice"] == "failed"


def test_a_signal_waits_for_what_is_being_written(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, on_step, put = RunDirectory(tmp_path / "run"), JsonlTracker.on_step, writing._put_in_place
    asked = threading.Event()

    def told(self: JsonlTracker, record: StepRecord) -> None:
        on_step(self, record)
        if record.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            asked.set()

    def late(*given: Any) -> None:
        asked.wait(PATIENCE)
        put(*given)

    monkeypatch.setattr(JsonlTracker, "on_step", told)
    monkeypatch.setattr(writing, "_put_in_place", late)
    with pytest.raises(AnnouncedEnd):
        train(short(model), run.path, resume=False)
    assert run.steps() == [2, 3]
    assert [damage(run.checkpoint(step)) for step in run.steps()] == [None, None]


def test_without_room_for_a_copy_training_waits_and_says_so(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "available_memory", lambda: 1000)
    began: list[bool] = []
    begin = CheckpointWriter.begin
    monkeypatch.setattr(
        CheckpointWriter,
        "begin",
        lambda self, parts, background: began.append(background) or begin(self, parts, background),
    )
    train(short(model), tmp_path / "run", resume=False)
    assert began == [False, False]
    [said] = [line["text"] for line in lines(tmp_path / "run") if line.get("notice") == "waiting-checkpoints"]
    assert said.endswith("9.31e-07 GiB are free.")


def test_its_thread_has_ended_once_it_is_finished(tmp_path: Path) -> None:
    """Python that ends while a thread frees tensors aborts: "terminate called without an active exception"."""
    run = RunDirectory(tmp_path)
    run.recipe.write_text("")
    writer, going_on = CheckpointWriter(run), threading.Event()

    def state(folder: Path) -> None:
        going_on.wait(PATIENCE)

    writer.begin(Parts(1, "identity", lambda: write_nothing, lambda: state), background=True)
    writer._whole.add_done_callback(lambda whole: time.sleep(0.3))  # in the thread, as the end of its function is
    going_on.set()
    assert writer.finish() is not None
    assert "amsd-checkpoint" not in {thread.name for thread in threading.enumerate()}


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[CheckpointWriter]], None]:
    """Two processes (threads here) that agree as a group does."""
    own, meeting = threading.local(), threading.Barrier(2, timeout=PATIENCE)
    slots: list[Any] = [None, None]

    def all_gather(found: list[Any], outcome: Any, group: Any) -> None:
        meeting.wait()
        slots[group] = outcome
        meeting.wait()
        found[:] = slots

    monkeypatch.setattr(writing.dist, "all_gather_object", all_gather)
    monkeypatch.setattr(writing.processes, "world_size", lambda: 2)
    monkeypatch.setattr(writing.processes, "rank", lambda: own.rank)
    monkeypatch.setattr(writing.dist, "new_group", lambda backend: own.rank)
    return own


@pytest.mark.parametrize("failing", [None, 0, 1])
def test_processes_agree_on_the_end(two: Any, tmp_path: Path, failing: int | None) -> None:
    run, said = RunDirectory(tmp_path), [""] * 2
    run.recipe.write_text("")

    def process(rank: int) -> None:
        two.rank = rank
        writer = CheckpointWriter(run)

        def state(folder: Path) -> None:
            if failing == rank:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            (folder / f"rng-{rank}.json").write_text("{}")

        weights = (
            (lambda folder: (folder / "adapter_model.safetensors").write_text("w")) if rank == 0 else write_nothing
        )
        begun = writer.begin(Parts(1, "identity", lambda: weights, lambda: state), background=False)
        assert len(begun.weights_sha256) == 64
        try:
            writer.finish()
        except RunError as error:
            said[rank] = str(error)

    as_processes(process)
    assert not list(run.checkpoints.glob(".*"))
    if failing is None:
        assert said == ["", ""]
        assert damage(run.checkpoint(1)) is None
        assert {path.name for path in (run.checkpoint(1) / "state").iterdir()} == {"rng-0.json", "rng-1.json"}
    else:
        assert run.steps() == []
        assert said[0] == said[1] != ""
        assert "No space left on device" in said[0]
