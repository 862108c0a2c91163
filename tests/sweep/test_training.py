"""Two ranks per trial of the real `amsd train` on the embedded model: one recipe, and pruning reaches both."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from amsd.sweep.jobs import RunLog, Verdict
from amsd.sweep.launchers.processes import MARK, ProcessExecutor
from amsd.sweep.trial import make_point
from tests.sweep.conftest import MakePlan
from tests.sweep.real import logged_steps, real_plan

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def test_two_ranks_train_one_recipe_and_a_pruned_trial_leaves_nobody_behind(
    make_plan: MakePlan, tmp_path: Path
) -> None:
    plan = real_plan(make_plan)
    execution = plan.sweep.execution.model_copy(update={"processes": 2})
    (job,) = make_point(plan, tmp_path, 0, {"schedule.eta": 0.9}).jobs
    ranks: dict[str, list[str]] = {}

    def marked() -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == str(job.directory.resolve()):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def monitor(log: RunLog) -> Verdict:
        for process in marked():
            try:
                if "RANK" in process.environ():
                    ranks[process.environ()["RANK"]] = process.cmdline()
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return Verdict.PRUNE if log.evaluation_steps() else Verdict.CONTINUE

    ended = ProcessExecutor(execution).run(job, monitor)
    assert ended.status == "pruned", ended.error
    assert set(ranks) == {"0", "1"}
    assert all(str(job.directory / "recipe.toml") in command for command in ranks.values())
    assert marked() == []
    # Handed out again, the same job goes on where it was and ends.
    ended = ProcessExecutor(execution).run(job, lambda _: Verdict.CONTINUE)
    assert ended.status == "complete", ended.error
    assert logged_steps(job.run) == [1, 2, 3, 4]
