"""A real run with several trackers at once: what their own tools read back is what metrics.jsonl says."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from amsd.cli.app import app
from tests.cli.commands import write_recipe
from tests.tracking.test_wandb import Offline, offline_runs


@pytest.mark.slow
def test_a_run_tells_all_its_trackers_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trackers = ["wandb", "tensorboard", *(["trackio"] if importlib.util.find_spec("trackio") else [])]
    changes = ["training.steps=4", "tracking.mode=offline", "tracking.project=several", "tracking.name=one",
               f"tracking.trackers={json.dumps(trackers)}"]  # fmt: skip
    arguments = ["train", str(write_recipe(tmp_path)), "--output", str(tmp_path / "run")]
    outcome = CliRunner().invoke(app, [*arguments, *(word for change in changes for word in ("--set", change))])
    assert outcome.exit_code == 0, f"{outcome.output}{outcome.exception}"

    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    losses = {entry["step"]: entry["loss"] for entry in log if "loss" in entry}
    assert list(losses) == [1, 2, 3, 4]

    (folder,) = offline_runs(tmp_path / "run")
    rows = [record["history"]["item"] for record in Offline(folder).of("history")]
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    images = [picture for tag in events.Tags()["images"] for picture in events.Images(tag)]
    curves = {
        "wandb": {row["step"]: row["loss"] for row in rows if "loss" in row},
        "tensorboard": {point.step: point.value for point in events.Scalars("loss")},
    }
    rewards = {
        "wandb": {row["eval/step"]: row["eval/brightness"] for row in rows if "eval/brightness" in row},
        "tensorboard": {point.step: point.value for point in events.Scalars("eval/brightness")},
    }
    pictures = {
        "wandb": [row["eval/step"] for row in rows if any(key.startswith("samples/") for key in row)],
        "tensorboard": [picture.step for picture in images],
    }
    if "trackio" in trackers:
        import trackio

        logs = trackio.SQLiteStorage.get_logs("several", "one")
        curves["trackio"] = {row["step"]: row["loss"] for row in logs if "loss" in row}
        rewards["trackio"] = {row["eval/step"]: row["eval/brightness"] for row in logs if "eval/brightness" in row}
        pictures["trackio"] = [row["eval/step"] for row in logs if any(key.startswith("samples/") for key in row)]
    for name in trackers:
        assert curves[name] == pytest.approx(losses), name
        assert list(rewards[name]) == [0, 2, 4], name  # evaluations have an axis of their own
        assert rewards[name] == pytest.approx(rewards["wandb"]), name
        assert pictures[name] == [0, 2, 4], name
