"""Values of objectives, cost of recipes, keys of points, dominance: against closed forms."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from amsd.errors import RunError, UsageError
from amsd.lock import locked
from amsd.recipe.catalog import folder
from amsd.recipe.load import read_toml
from amsd.sweep.jobs import RunLog, Verdict, objective_value
from amsd.sweep.launchers.local import gpu_shares
from amsd.sweep.launchers.processes import Follower, ProcessExecutor, last_step
from amsd.sweep.results import dominates
from amsd.sweep.schema import Constraint, Objective
from amsd.sweep.trial import make_point
from tests.sweep.conftest import MakePlan

BASE = read_toml(folder("recipes") / "shapes.toml")
LOG = RunLog(
    evaluations={
        0: {"a": {"eval/m": 9.0}},
        2: {"a": {"eval/m": 1.0, "eval/m/difference": 0.1}, "b": {"eval/m": 5.0}},
        4: {"a": {"eval/m": 0.5, "eval/m/difference": -0.4}, "b": {"eval/m": 7.0}},
    },
    training={step: {"kl": float(step)} for step in range(1, 41)},
    best_step=2,
)


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (Objective(metric="m"), 0.5),
        (Objective(metric="m", at="best"), 1.0),
        (Objective(metric="m", value="difference"), -0.4),
        (Objective(metric="m", setting="b"), 7.0),
        (Objective(metric="train/kl"), 38.5),  # mean of 37..40, the last tenth
    ],
)
def test_objective_value(objective: Objective, expected: float) -> None:
    assert objective_value(objective, LOG) == expected


def test_values_that_are_not_there_or_not_finite_are_errors() -> None:
    with pytest.raises(RunError, match="has no 'eval/other'"):
        objective_value(Objective(metric="other"), LOG)
    with pytest.raises(RunError, match="is nan"):
        objective_value(Objective(metric="m"), RunLog(evaluations={1: {"a": {"eval/m": math.nan}}}))


def test_follower_reads_each_line_once_and_waits_for_half_a_line(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    follower = Follower(tmp_path)
    assert follower.read() == RunLog()
    log.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "evaluation": "a", "eval/m": 1')
    assert follower.read() == RunLog(training={1: {"loss": 2.0}})
    with log.open("a") as stream:
        stream.write('.5}\n{"step": 2, "notice": "x", "text": "y"}\nhalf a li\n{"step": 3, "loss": null}\n')
    read = follower.read()
    assert read.evaluations[2]["a"]["eval/m"] == 1.5
    assert list(read.training) == [1, 3]
    assert math.isnan(read.training[3]["loss"])


def test_follower_starts_again_when_a_resumed_run_cuts_the_log(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_text("".join(f'{{"step": {step}, "loss": 1.0}}\n' for step in range(1, 9)))
    follower = Follower(tmp_path)
    follower.read()
    log.write_text('{"step": 1, "loss": 3.0}\n')
    assert follower.read().training == {1: {"loss": 3.0}}


def test_the_last_step_is_not_that_of_a_notice(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    assert last_step(tmp_path) is None
    log.write_text('{"step": 0, "notice": "x", "text": "y"}\n')
    assert last_step(tmp_path) is None
    log.write_text('{"step": 40, "loss": 1.0}\n{"step": 0, "notice": "x", "text": "y"}\n{"step": 41, "lo')
    assert last_step(tmp_path) == 40


def test_inert_flags_give_one_key(make_plan: MakePlan, tmp_path: Path) -> None:
    plan = make_plan(search={
        "guidance.guidance_scale": {"choices": [1.0, 5.0]},
        "guidance.guidance_in_adjoint_computation": {"choices": [False, True]},
    })  # fmt: skip

    def key(scale: float, flag: bool) -> str:
        params = {"guidance.guidance_scale": scale, "guidance.guidance_in_adjoint_computation": flag}
        return make_point(plan, tmp_path, 0, params).key

    assert key(1.0, False) == key(1.0, True)
    assert len({key(1.0, False), key(5.0, False), key(5.0, True)}) == 3


def test_runs_carry_group_name_and_tags(make_plan: MakePlan, tmp_path: Path) -> None:
    point = make_point(make_plan(seeds=[3, 4]), tmp_path, 7, {"schedule.eta": 0.712345})
    assert [job.seed for job in point.jobs] == [3, 4]
    assert [job.recipe.training.seed for job in point.jobs] == [3, 4]
    tracking = point.jobs[1].recipe.tracking
    assert (tracking.group, tracking.name, tracking.tags) == ("small", "small-0007-seed4", ("eta=0.7123",))
    assert point.jobs[0].recipe.schedule.eta == 0.712345


def test_constraint_and_dominance() -> None:
    assert Constraint(metric="kl", at_most=3.0).violation(4.0) == 1.0
    assert Constraint(metric="r", at_least=3.0).violation(4.0) == -1.0
    assert dominates((1.0, 2.0), (1.0, 3.0))
    assert not dominates((1.0, 2.0), (1.0, 2.0))
    assert not dominates((0.0, 3.0), (1.0, 2.0))


def test_gpus_are_divided() -> None:
    assert gpu_shares(["0", "1", "2", "3"], 2, 2) == ["0,1", "2,3"]
    assert gpu_shares([], 3, 1) == [None, None, None]
    assert gpu_shares(["0", "1"], 5, 1 / 3) == ["0", "0", "0", "1", "1"]
    assert gpu_shares(["5"], 2, 0.5) == ["5", "5"]
    assert gpu_shares(["0"], 2, 0) == [None, None]
    with pytest.raises(
        UsageError, match=r"Use --workers 1, or let small trials share a GPU: --set execution.gpus=0.33"
    ):
        gpu_shares(["0"], 3, 1)
    assert gpu_shares(["0"], 3, 0.33) == ["0", "0", "0"]
    with pytest.raises(UsageError, match="hold 2"):
        gpu_shares(["0"], 3, 0.4)
    with pytest.raises(
        UsageError, match=r"3 workers with 2 GPUs each do not fit: 4 GPUs are visible .* which hold 2\. Use --workers 2"
    ):
        gpu_shares(["0", "1", "2", "3"], 3, 2)


def test_a_job_whose_folder_another_worker_holds_is_not_run(make_plan: MakePlan, tmp_path: Path) -> None:
    plan = make_plan(execution={"terminate_seconds": 0.2})
    (job,) = make_point(plan, tmp_path, 0, {"schedule.eta": 0.9}).jobs
    with locked(job.directory):
        ended = ProcessExecutor(plan.sweep.execution).run(job, lambda _: Verdict.CONTINUE)
    assert ended.status == "lost"
    assert "in use by" in (ended.error or "")
    assert not (job.run / "starts.txt").exists()
    assert ProcessExecutor(plan.sweep.execution).run(job, lambda _: Verdict.CONTINUE).status == "complete"
