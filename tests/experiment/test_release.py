"""A run that an earlier release wrote is read, resumed, evaluated, exported and reported for ever (tests/data)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from amsd.cli.app import app
from amsd.report.data import load_run
from amsd.run_directory import RunDirectory, damage
from tests.data.make_run import STEPS, write_model

RELEASES = sorted(path.name for path in (Path(__file__).parents[1] / "data").glob("run-*"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("released") / "model"
    write_model(folder)
    return folder


@pytest.fixture(params=RELEASES)
def run(request: pytest.FixtureRequest, model: Path, tmp_path: Path) -> RunDirectory:
    """The run beside its model, both moved away from where they were trained."""
    shutil.copytree(Path(__file__).parents[1] / "data" / request.param, tmp_path / "run")
    shutil.copytree(model, tmp_path / "model")
    return RunDirectory(tmp_path / "run")


def amsd(*arguments: str | Path) -> str:
    """What a command prints; it must succeed."""
    ended = CliRunner().invoke(app, [str(each) for each in arguments], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    return ended.output


def logged(run: RunDirectory) -> dict[int, dict[str, Any]]:
    lines = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    return {line["step"]: line for line in lines if "loss" in line}


def test_there_is_one_and_it_is_small() -> None:
    assert "run-0.1.0" in RELEASES
    for name in RELEASES:
        files = [file for file in (Path(__file__).parents[1] / "data" / name).rglob("*") if file.is_file()]
        assert sum(file.stat().st_size for file in files) < 300_000


def test_it_is_whole_and_reported(run: RunDirectory, tmp_path: Path) -> None:
    assert [damage(run.checkpoint(step)) for step in run.steps()] == [None, None]
    read = load_run(run.path)
    assert read.gaps == ()
    assert read.finished
    assert [point.step for point in read.checkpoints] == [2, 4]
    amsd("report", run.path, "--html", tmp_path / "page.html")
    assert "brightness" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_it_is_resumed_in_the_middle_of_a_buffer(run: RunDirectory) -> None:
    """Without its last checkpoint: the steps after the first are made again, alike, and two more."""
    before = logged(run)
    shutil.rmtree(run.checkpoint(STEPS))
    more = f"training.steps={STEPS + 2}"
    amsd("train", run.recipe, "--output", run.path, "--resume", "--set", more)
    after = logged(run)
    assert sorted(after) == list(range(1, STEPS + 3))
    assert [after[step] for step in (1, 2)] == [before[step] for step in (1, 2)]
    for step in (3, 4):
        for name in ("loss", "gradient_norm", "reward/mean", "kl", "ess"):
            assert after[step][name] == pytest.approx(before[step][name], rel=1e-2, abs=1e-6), (step, name)
    assert run.steps() == [STEPS, STEPS + 2]
    assert [damage(run.checkpoint(step)) for step in run.steps()] == [None, None]


def test_it_is_evaluated_and_exported(run: RunDirectory, tmp_path: Path) -> None:
    place = run.checkpoint(STEPS) / "evaluation"
    (kept,) = place.glob("*.json")
    before = json.loads(kept.read_text(encoding="utf-8"))
    found = json.loads(amsd("eval", run.checkpoint(STEPS), "--json").splitlines()[-1])
    metrics = found[before["setting"]]["metrics"]
    for name, metric in before["metrics"].items():
        assert metrics[name]["per_prompt"] == pytest.approx(metric["per_prompt"], rel=1e-3)
        assert metrics[name]["paired"]["difference"] == pytest.approx(metric["paired"]["difference"], rel=0.1, abs=1e-6)
    amsd("export", run.checkpoint(STEPS), "--to", tmp_path / "lora")
    assert list((tmp_path / "lora").rglob("*.safetensors"))


@pytest.mark.parametrize("damage_done", ["truncated", "binary", "emptied", "deleted", "another format"])
def test_a_damaged_log_is_named_once_and_the_training_goes_on(run: RunDirectory, damage_done: str) -> None:
    lines = run.metrics.read_bytes().splitlines(keepends=True)
    whole = logged(run)
    content = {
        "truncated": b"".join(lines)[: sum(map(len, lines)) // 3],
        "binary": b"\x89PNG\r\n\x1a\n\x00" * 100,
        "emptied": b"",
        "deleted": b"",
        "another format": b'{"format": 9, "records": [[1, 0.5], [2, 0.4]]}\n',
    }[damage_done]
    run.metrics.write_bytes(content)
    if damage_done == "deleted":
        run.metrics.unlink()
    for more in (1, 2):
        amsd("train", run.recipe, "--output", run.path, "--resume", "--set", f"training.steps={STEPS + more}")
    notices = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines() if '"notice"' in line]
    said = [line["text"] for line in notices if line["notice"] == "damaged-log"]
    assert said
    assert all("metrics.jsonl is damaged:" in text for text in said)
    kept = logged(run)
    assert {STEPS + 1, STEPS + 2} <= kept.keys()
    for step in kept.keys() & whole.keys():
        assert kept[step] == whole[step]
    assert any("damaged" in notice.text for notice in load_run(run.path).notices)


def test_a_torn_last_line_is_no_damage(run: RunDirectory) -> None:
    with run.metrics.open("a", encoding="utf-8") as stream:
        stream.write('{"step": 5, "los')
    amsd("train", run.recipe, "--output", run.path, "--resume", "--set", f"training.steps={STEPS + 1}")
    assert "damaged-log" not in run.metrics.read_text(encoding="utf-8")
    assert sorted(logged(run)) == list(range(1, STEPS + 2))


def test_a_run_from_before_recipes_had_a_format_goes_on_as_it_did(model: Path, tmp_path: Path) -> None:
    """Kept of commit 5534572: the log of four steps and the second checkpoint, whose threshold counts its own batch."""
    shutil.copytree(Path(__file__).parents[1] / "data" / "unversioned-run", tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    written = run.recipe.read_text(encoding="utf-8")
    assert "format" not in written
    assert "outlier_threshold" not in written
    run.recipe.write_text(written.replace("/home/user/amsd/model", str(model)), encoding="utf-8")
    before = logged(run)
    amsd("train", run.recipe, "--output", run.path, "--resume")
    after = logged(run)
    assert sorted(after) == sorted(before) == [1, 2, 3, 4]
    for step in (3, 4):
        for name in ("loss", "gradient_norm", "reward/mean", "kl", "ess", "masked_share"):
            assert after[step][name] == pytest.approx(before[step][name], rel=1e-3, abs=1e-7), (step, name)
    assert 'outlier_threshold = "current"' in run.recipe.read_text(encoding="utf-8")
    amsd("train", run.recipe, "--output", tmp_path / "again")  # from the start, as it was then
    again = logged(RunDirectory(tmp_path / "again"))
    assert [again[step]["loss"] for step in before] == pytest.approx(
        [before[step]["loss"] for step in before], rel=1e-3
    )
