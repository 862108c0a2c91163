"""W&B offline, read back by W&B's own tool (`wandb leet inspect`)."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import pytest
import wandb

from amsd.tracking import BackgroundTracker, background
from amsd.training.events import Notice
from tests.tracking import story


def inspect(folder: Path, *options: str) -> str:
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", *options, str(folder)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def offline_runs(run: Path) -> list[Path]:
    return sorted((run / "wandb").glob("offline-run-*"))


class Offline:
    """An offline run that was read back."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.summary: dict[str, Any] = json.loads(inspect(folder, "--summary"))

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in inspect(self.folder).splitlines()]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [record for record in self.records if record["type"] == kind]


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Offline:
    run = tmp_path_factory.mktemp("run")
    said: list[Notice] = []
    tracker = BackgroundTracker("wandb", said.append)
    story.play(tracker, story.info(run, project="p", group="g", name="n", tags=["a", "b"]))
    tracker.on_end("finished", None)
    assert said == []
    (folder,) = offline_runs(run)
    return Offline(folder)


def test_training_curve(offline: Offline) -> None:
    rows = [row["history"]["item"] for row in offline.of("history") if "loss" in row["history"]["item"]]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["loss"] for row in rows] == pytest.approx([10 / n for n in range(1, 7)])
    assert [row["reward/mean"] for row in rows] == pytest.approx([0.1 * n for n in range(1, 7)])


def test_evaluation_has_its_own_axis(offline: Offline) -> None:
    rows = [row["history"]["item"] for row in offline.of("history") if "eval/step" in row["history"]["item"]]
    assert [row["eval/step"] for row in rows] == [0, 2, 4, 6]
    assert all("step" not in row for row in rows)
    assert [row["eval/shapes:right"] for row in rows] == pytest.approx([0.6, 0.8, 1.0, 1.2])
    assert [row.get("eval/shapes:right/difference") for row in rows] == [None, *map(pytest.approx, (0.2, 0.4, 0.6))]
    assert rows[1][f"eval/{story.OTHER}/shapes:right"] == pytest.approx(0.8)
    axes = {row["metric"]["name"]: row["metric"]["step_metric"] for row in offline.of("metric")}
    assert {name: axis for name, axis in axes.items() if name.startswith(("eval/", "samples/", "prompts/"))} == {
        name: "eval/step" for name in axes if "/" in name and name.split("/")[0] in ("eval", "samples", "prompts")
    }
    assert axes["loss"] == axes["reward/mean"] == axes["checkpoint/step"] == "step"


def test_config_is_the_resolved_recipe(offline: Offline) -> None:
    config = offline.summary["config"]
    assert config["guidance"]["guidance_scale"] == 7.5
    assert config["method"]["name"] == "am"
    assert config["reward"][0]["name"] == "shapes:right"
    assert config["identity"] == story.info(Path()).identity
    assert (offline.summary["project"], offline.summary["name"], offline.summary["tags"]) == ("p", "n", ["a", "b"])
    assert any(record["run"].get("run_group") == "g" for record in offline.of("run"))


def test_images_tables_checkpoints_notices(offline: Offline) -> None:
    summary = offline.summary["summary"]
    picture = summary[f"samples/{story.SETTING}"]
    assert (picture["_type"], picture["width"], picture["height"]) == ("image-file", 8, 8)
    assert (offline.folder / "files" / picture["path"]).read_bytes().startswith(b"\x89PNG")
    prompts = json.loads((offline.folder / "files" / summary[f"prompts/{story.SETTING}"]["path"]).read_text("utf-8"))
    assert prompts["columns"] == ["step", "prompt", "shapes:right", "diversity/shapes"]
    assert [row[1] for row in prompts["data"]] == list(story.PROMPTS)
    assert [row[2] for row in prompts["data"]] == pytest.approx([1.1, 1.2, 1.3])
    notices = json.loads((offline.folder / "files" / summary["notices"]["path"]).read_text("utf-8"))
    assert notices["data"] == [[3, "reward-hacking", "the reward [rose] while 50% fell"]]
    assert offline.of("alert")[0]["alert"]["title"] == "reward-hacking"
    assert (summary["checkpoint/step"], summary["checkpoint/weights_sha256"]) == (6, f"{6:064x}")
    assert (summary["status"], offline.summary["exit_code"]) == ("finished", 0)


@pytest.mark.slow
def test_resume_keeps_the_id_and_failure_is_recorded(tmp_path: Path) -> None:
    """Offline, W&B makes a second folder of the same id: `wandb sync` of both joins them."""
    said: list[Notice] = []
    for resumed_from in (None, 4):
        tracker = BackgroundTracker("wandb", said.append)
        tracker.on_start(story.info(tmp_path, resumed_from))
        story.step(tracker, (resumed_from or 0) + 1)
        tracker.on_end("failed", "loss is nan")
        time.sleep(1.1)  # W&B names folders by the second
    first, second = map(Offline, offline_runs(tmp_path))
    assert first.summary["run_id"] == second.summary["run_id"]
    assert (second.summary["exit_code"], second.summary["summary"]["error"]) == (1, "loss is nan")
    assert said == []


def test_names_and_place_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in {
        "PROJECT": "mine",
        "RUN_GROUP": "group",
        "TAGS": "x,y",
        "NOTES": "why",
        "NAME": "n",
    }.items():
        monkeypatch.setenv(f"WANDB_{variable}", value)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    tracker = BackgroundTracker("wandb", lambda notice: None)
    tracker.on_start(story.info(tmp_path / "run", tags=["own"], job_type="probe"))
    tracker.on_end("finished", None)
    (folder,) = offline_runs(tmp_path / "elsewhere")
    run = Offline(folder)
    assert (run.summary["project"], run.summary["name"], run.summary["tags"]) == ("mine", "n", ["own"])
    (record,) = (record["run"] for record in run.of("run"))
    assert (record["run_group"], record["notes"], record["job_type"]) == ("group", "why", "probe")


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/nowhere"])
def test_a_place_that_cannot_be_written_to_is_said(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B itself would take the system's temporary folder and say nothing."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / place))
    said: list[Notice] = []
    tracker = BackgroundTracker("wandb", said.append)
    tracker.on_start(story.info(tmp_path / "run"))
    tracker.on_end("finished", None)
    (notice,) = (each for each in said if each.kind == "wandb-folder")
    assert notice.text.startswith(f"WANDB_DIR = '{tmp_path / place}' cannot be written to (")
    assert len(offline_runs(tmp_path / "run")) == 1


def test_a_home_that_takes_no_files_ends_no_tracking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B stages tables in the user's home, and raises where it cannot."""
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, "x")  # what amsd sets is taken back after the test
        monkeypatch.delenv(name)
    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "/proc/nowhere")
    said: list[Notice] = []
    tracker = BackgroundTracker("wandb", said.append)
    start = story.info(tmp_path / "run")
    tracker.on_start(start)
    story.evaluate(tracker, start.run, 0, None)
    tracker.on_notice(Notice("x", "kept as a table"))
    tracker.on_end("finished", None)
    assert [each.kind for each in said if each.kind != "wandb-offline"] == ["wandb-folder"]
    assert (
        f"what W&B keeps there goes to {tmp_path / 'run' / 'wandb' / 'home'} (WANDB_DATA_DIR and WANDB" in said[0].text
    )
    assert len(offline_runs(tmp_path / "run")) == 1


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["killed", "stopped", "killed before the end"])
def test_dead_wandb_loses_nothing_and_says_so_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """W&B's own process is killed or frozen: a second offline folder of the same id has what the first one lacks."""
    monkeypatch.setattr(background, "CALL_PATIENCE", 1.0)
    monkeypatch.setattr(background, "CLOSE_PATIENCE", (3.0, 2.0, 15.0))
    said: list[Notice] = []
    tracker = BackgroundTracker("wandb", said.append)
    start = story.info(tmp_path)
    tracker.on_start(start)
    story.evaluate(tracker, start.run, 0, None)
    for number in (1, 2):
        story.step(tracker, number)
    time.sleep(1.1)  # W&B names folders by the second
    last = 6
    if fault != "killed before the end":
        strike(fault)
        last = 400  # enough to fill what lies between the two processes
    longest = 0.0
    for number in range(3, last + 1):
        begin = time.monotonic()
        story.step(tracker, number)
        longest = max(longest, time.monotonic() - begin)
    story.checkpoint(tracker, start.run, last)
    if fault == "killed before the end":
        strike(fault)
    begin = time.monotonic()
    tracker.on_end("finished", None)
    assert time.monotonic() - begin < 28
    assert longest < 1.0
    assert [notice.kind for notice in said] == ["wandb-restarted"]
    runs = [Offline(folder) for folder in offline_runs(tmp_path)]
    kept = (tmp_path / "wandb" / "run-id").read_text().strip()
    assert {run.summary["run_id"] for run in runs} <= {kept, ""}  # a killed process may have written nothing
    assert runs[-1].summary["run_id"] == kept
    items = [row["history"]["item"] for run in runs for row in run.of("history")]
    assert {item["step"] for item in items if "loss" in item} == set(range(1, last + 1))
    assert {item["eval/step"] for item in items if "eval/shapes:right" in item} == {0, last}
    assert runs[-1].summary["summary"]["status"] == "finished"
    assert all(str(run.folder) in said[0].text for run in runs)


def strike(fault: str) -> None:
    for child in psutil.Process().children(recursive=True):
        if child.name().startswith("wandb-core"):
            child.suspend() if fault == "stopped" else child.kill()


@pytest.mark.parametrize("failure", [OSError("disk"), wandb.Error("no service"), ValueError("bad setting")])
def test_failure_at_the_start_is_announced_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def refuse(**_: object) -> None:
        raise failure

    monkeypatch.setattr(wandb, "init", refuse)
    said: list[Notice] = []
    tracker = BackgroundTracker("wandb", said.append)
    story.play(tracker, story.info(tmp_path))
    tracker.on_end("finished", None)
    assert [notice.kind for notice in said] == ["wandb-failed"]
    assert str(failure) in said[0].text


def test_disabled_touches_nothing(tmp_path: Path) -> None:
    said: list[Notice] = []
    tracker = BackgroundTracker("wandb", said.append)
    tracker.on_start(story.info(tmp_path, mode="disabled"))
    story.step(tracker, 1)
    tracker.on_end("finished", None)
    assert said == []
    assert not (tmp_path / "wandb").exists()
