from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from amsd.errors import UsageError
from amsd.report.data import load_run
from amsd.run_directory import RunDirectory
from tests.report.synthetic import DIVERSITY, REWARD, append, recipe, write_run


def test_reads_what_a_finished_run_left(tmp_path: Path) -> None:
    made = recipe()
    run = load_run(write_run(tmp_path / "run", made))
    assert run.recipe == made
    assert run.finished
    assert run.gaps == ()
    assert [point.step for point in run.checkpoints] == [10, 20, 30, 40, 50, 60]
    assert run.checkpoints[-1].labels == ("best", "latest")
    assert run.settings == tuple(setting.name for setting in made.evaluation_settings)
    assert run.curves["loss"].steps == tuple(range(1, 61))
    assert len(run.checkpoints[0].samples[run.settings[0]]) == 8 * 4


def test_paired_difference_is_the_difference_of_the_means(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "run", recipe()))
    setting = run.settings[0]
    for name in (REWARD, DIVERSITY):
        now, base = run.checkpoints[2].evaluations[setting].metrics[name], run.base.evaluations[setting].metrics[name]
        assert now.paired is not None
        assert now.paired.difference == pytest.approx(now.mean - base.mean)


def test_a_deleted_checkpoint_lives_on_in_the_log(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", recipe())
    shutil.rmtree(RunDirectory(folder).checkpoint(20))
    line = {
        "step": 20, "evaluation": "fine-tuning-eta0-cfg7.5-steps20",
        f"eval/{DIVERSITY}": 0.25, f"eval/{DIVERSITY}/standard_error": 0.01, f"eval/{DIVERSITY}/difference": -0.05,
        f"eval/{DIVERSITY}/difference_standard_error": 0.02, f"eval/{DIVERSITY}/p_value": 0.03, f"eval/{REWARD}": 0.3,
    }  # fmt: skip
    append(folder, line)
    point = next(point for point in load_run(folder).checkpoints if point.step == 20)
    assert not point.on_disk
    metric = point.evaluations["fine-tuning-eta0-cfg7.5-steps20"].metrics[DIVERSITY]
    assert (metric.mean, metric.standard_error) == (0.25, 0.01)
    assert metric.paired is not None
    assert (metric.paired.difference, metric.paired.standard_error, metric.paired.p_value) == (-0.05, 0.02, 0.03)


def test_retention_leaves_evaluations_and_pictures_to_the_report(tmp_path: Path) -> None:
    from amsd.training.checkpoint import discard_after, retain

    folder = write_run(tmp_path / "run", recipe())
    before = load_run(folder)
    run = RunDirectory(folder)
    run.point("best", 30)
    retain(run, keep=2)
    assert run.steps() == [30, 50, 60]
    after = load_run(folder)
    assert [point.on_disk for point in after.checkpoints] == [False, False, True, False, True, True]
    for then, now in zip(before.checkpoints, after.checkpoints, strict=True):
        assert now.evaluations == then.evaluations
        assert {name: list(shots) for name, shots in now.samples.items()} == {
            name: list(shots) for name, shots in then.samples.items()
        }
        assert all(file.is_file() for shots in now.samples.values() for file in shots.values())
    discard_after(run, 30)  # resumed from step 30: what came after belongs to an abandoned continuation
    assert [point.step for point in load_run(folder).checkpoints] == [10, 20, 30]


def test_a_base_evaluation_may_come_from_the_log(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", recipe())
    shutil.rmtree(RunDirectory(folder).base_evaluation)
    append(folder, {"step": 0, "evaluation": "fine-tuning-eta0-cfg7.5-steps20", f"eval/{REWARD}": 0.125})
    run = load_run(folder)
    assert run.base.evaluations["fine-tuning-eta0-cfg7.5-steps20"].metrics[REWARD].mean == 0.125
    assert 0 not in [point.step for point in run.checkpoints]


def test_steps_logged_twice_count_once_and_the_later_one_wins(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", recipe())
    append(folder, {"step": 7, "loss": 123.0})
    curve = load_run(folder).curves["loss"]
    assert len(curve.steps) == 60
    assert curve.values[6] == 123.0


def test_a_run_that_died_says_so(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", recipe(), until=23)
    with RunDirectory(folder).metrics.open("a", encoding="utf-8") as stream:
        stream.write('{"step": 24, "loss": 1')
    run = load_run(folder)
    assert not run.finished
    assert any("step 23 of 60" in gap for gap in run.gaps)
    assert any("1 line of metrics.jsonl" in gap for gap in run.gaps)
    append(folder, {})  # ends the torn line
    append(folder, {"step": 24, "notice": "failed", "text": "the adjoint is not finite"})
    assert any(gap == "The run failed: step 23 of 60." for gap in load_run(folder).gaps)


def test_values_that_are_not_finite_are_counted(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", recipe())
    append(folder, {"step": 61, "loss": None, "kl": None})
    run = load_run(folder)
    assert run.curves["loss"].not_finite == run.curves["kl"].not_finite == 1
    assert len(run.curves["loss"].steps) == 60
    assert any("loss (1)" in gap for gap in run.gaps)


@pytest.mark.parametrize("lost", ["recipe.toml", "metrics.jsonl", "evaluation", "samples", "checkpoints"])
def test_any_part_may_be_missing(tmp_path: Path, lost: str) -> None:
    from amsd.report.page import render
    from amsd.report.story import run_story

    folder = write_run(tmp_path / "run", recipe())
    place = folder / lost
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    assert "<h1>" in render(run_story(folder))
    if lost != "samples":
        assert load_run(folder).gaps


def test_damaged_files_are_named_not_fatal(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", recipe())
    (folder / "recipe.toml").write_text("[model]\nno_such_key = 1\n", encoding="utf-8")
    file = RunDirectory(folder).checkpoint(10) / "evaluation" / "fine-tuning-eta0-cfg7.5-steps20.json"
    file.write_text(json.dumps({"metrics": {"x": 3}}), encoding="utf-8")
    gaps = " ".join(load_run(folder).gaps)
    assert "no_such_key" in gaps
    assert "step-000010/evaluation/fine-tuning-eta0-cfg7.5-steps20.json" in gaps


def test_an_empty_folder_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither a run nor a sweep"):
        load_run(tmp_path)
