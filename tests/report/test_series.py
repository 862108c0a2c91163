"""Different conditions are different series, whatever the files are called."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from amsd.evaluation.result import EvaluationResult, result_key
from amsd.evaluation.statistics import summarize
from amsd.report.data import load_run, named_together, read_run
from amsd.report.figures.curves import learning_panels
from amsd.report.page import render
from amsd.report.story import run_story
from amsd.run_directory import RunDirectory
from tests.report.synthetic import REWARD, append, recipe, write_run

SETTING = "fine-tuning-eta0-cfg7.5-steps20"


def result(weights: str, level: float, prompts: int = 4, seed: int = 0, version: str = "1") -> EvaluationResult:
    """A result against the base model `B`, whose reward is `level` at every prompt."""
    texts = tuple(f"prompt {index}" for index in range(prompts))
    settings = {"name": SETTING, "samples_per_prompt": 2, "seed": seed, "weights": weights}
    metrics = {REWARD: summarize(version, [level] * prompts, None if weights == "B" else [0.0] * prompts)}
    key = result_key(settings, texts, {REWARD: version}, "B")
    return EvaluationResult(SETTING, settings, "i", texts, metrics, key, "B")


def log_line(step: int, found: EvaluationResult, key: bool = True) -> dict[str, object]:
    keyed = {"key": found.key} if key else {}
    return {"step": step, "evaluation": found.name, **keyed, f"eval/{REWARD}": found.metrics[REWARD].mean}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """Base and steps 10, 20, 30, evaluated while training on 4 prompts, seed 0."""
    folder = write_run(tmp_path / "run", recipe(training={"steps": 30, "checkpoint_every": 10}), pictures=False)
    run = RunDirectory(folder)
    for file in folder.rglob("evaluation/*.json"):
        file.unlink()
    for file in run.base_evaluation.glob("*.json"):
        file.unlink()
    for step, weights in ((0, "B"), (10, "B+1"), (20, "B+2"), (30, "B+3")):
        found = result(weights, step / 100)
        found.save(run.checkpoint(step) / "evaluation" if step else run.base_evaluation)
        append(folder, log_line(step, found))
    return run


def levels(run: RunDirectory, series: str) -> dict[int, float]:
    read = load_run(run.path)
    points = {0: read.base, **{point.step: point for point in read.checkpoints}}
    return {
        step: point.evaluations[series].metrics[REWARD].mean
        for step, point in points.items()
        if series in point.evaluations
    }


def test_a_name_follows_from_everything_but_the_weights() -> None:
    first = result("B+1", 0.1)
    assert first.stem == result("B+2", 0.7).stem == result("B", 0.0).stem
    stems = {each.stem for each in (first, result("B+1", 0.1, prompts=5), result("B+1", 0.1, seed=1),
                                    result("B+1", 0.1, version="2"))}  # fmt: skip
    assert len(stems) == 4
    assert first.stem.startswith(f"{SETTING}-4x2-")


def test_another_seed_overwrites_nothing_and_is_a_series_of_its_own(run: RunDirectory) -> None:
    own = {0: 0.0, 10: 0.1, 20: 0.2, 30: 0.3}
    assert levels(run, SETTING) == pytest.approx(own)
    result("B+2", -0.9, seed=3).save(run.checkpoint(20) / "evaluation")
    result("B+3", -0.8, prompts=7).save(run.checkpoint(30) / "evaluation")
    read = load_run(run.path)
    first = read.settings[0]
    assert first == f"{SETTING} · 4 prompts, seed 0"
    assert levels(run, first) == pytest.approx(own)
    assert levels(run, f"{SETTING} · 4 prompts, seed 3") == {20: -0.9}
    assert levels(run, f"{SETTING} · 7 prompts, seed 0") == {30: -0.8}
    panel = next(panel for panel in learning_panels(run_story(run.path)) if panel.title == "Reward in evaluation")
    assert panel.svg.count("line m0 beside") == 2
    assert "4 prompts, seed 3" in render(run_story(run.path))


def test_files_and_lines_of_earlier_versions_stay_on_their_curve(run: RunDirectory) -> None:
    for file in list(run.path.rglob("evaluation/**/*.json")):
        data = json.loads(file.read_text())
        kept = {name: data[name] for name in ("settings", "identity", "prompts", "metrics")}
        (file.parent / f"{SETTING}.json").write_text(json.dumps(kept))
        file.unlink()
    lines = run.metrics.read_text().splitlines()
    plain = [json.dumps({k: v for k, v in json.loads(line).items() if k != "key"}) for line in lines]
    run.metrics.write_text("\n".join(plain) + "\n")
    assert levels(run, SETTING) == pytest.approx({0: 0.0, 10: 0.1, 20: 0.2, 30: 0.3})
    # What an earlier version overwrote is in the log still, and the file is no point of that curve.
    old = result("B+2", -0.9, seed=3).to_json()
    kept = {name: old[name] for name in ("settings", "identity", "prompts", "metrics")}
    (run.checkpoint(20) / "evaluation" / f"{SETTING}.json").write_text(json.dumps(kept))
    assert levels(run, f"{SETTING} · seed 0") == pytest.approx({0: 0.0, 10: 0.1, 20: 0.2, 30: 0.3})
    assert levels(run, f"{SETTING} · seed 3") == {20: -0.9}


def test_further_metrics_join_the_curve_and_other_versions_of_one_do_not(run: RunDirectory) -> None:
    found = result("B+2", 0.2)
    more = replace(found, metrics={"extra": summarize("1", [1.0] * 4)}, key="12345678")
    more.save(run.checkpoint(20) / "evaluation")
    assert load_run(run.path).settings == (SETTING,)
    assert set(load_run(run.path).checkpoints[1].evaluations[SETTING].metrics) == {REWARD, "extra"}
    result("B+3", 0.9, version="2").save(run.checkpoint(30) / "evaluation")
    first, second = load_run(run.path).settings
    assert levels(run, first)[30] == pytest.approx(0.3)
    assert levels(run, second) == {30: 0.9}
    assert second.endswith(f"{REWARD} version 2")


def test_runs_of_a_sweep_that_were_evaluated_unlike_do_not_share_a_name(run: RunDirectory, tmp_path: Path) -> None:
    other = RunDirectory(write_run(tmp_path / "other", recipe(), pictures=False))
    for file in other.path.rglob("*eta*.json"):
        file.unlink()
    result("B", 0.0, seed=1).save(other.base_evaluation)
    one, two = named_together([read_run(run.path), read_run(other.path)])
    assert one.settings == (f"{SETTING} · seed 0",)
    assert two.settings == (f"{SETTING} · seed 1",)


def test_a_newer_format_is_refused_in_words_and_named_as_a_gap(run: RunDirectory) -> None:
    file = next((run.checkpoint(20) / "evaluation").glob("*.json"))
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 99}))
    assert any("newer than this amsd" in gap for gap in load_run(run.path).gaps)
