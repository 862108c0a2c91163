"""Every sampler and pruner that a sweep file may name, past the point where its model takes over."""

from __future__ import annotations

from pathlib import Path

import pytest

from amsd.sweep.results import SweepResults, results_of
from amsd.sweep.schema import SweepPlan
from amsd.sweep.search import suggest
from amsd.sweep.study import create, join
from amsd.sweep.worker import Worker
from tests.sweep.conftest import MakePlan
from tests.sweep.formula import Formula

SPACE = {
    "guidance.guidance_scale": {"choices": [1.0, 5.0]},
    "guidance.guidance_in_adjoint_computation": {
        "choices": [False, True], "when": {"guidance.guidance_scale": {"above": 1.0}},
    },
    "schedule.eta": {"low": 0.4, "high": 1.4},
    "training.steps": {"low": 4, "high": 8},
}  # fmt: skip
CONDITIONAL = "guidance.guidance_in_adjoint_computation"
TWO = [{"metric": "shapes:right"}, {"metric": "shapes:alignment", "direction": "minimize"}]
BOUND = [{"metric": "train/kl", "at_most": 2.0}]


def run(plan: SweepPlan, folder: Path, executor: Formula | None = None) -> SweepResults:
    """On a journal file, which is the quickest storage."""
    handle = create(plan, folder, f"journal:{folder}/journal.log")
    Worker(handle, executor or Formula()).run()
    return results_of(handle)


@pytest.mark.parametrize("objectives", [1, 2])
@pytest.mark.parametrize("name", ["tpe", "gp", "qmc", "nsga2", "random"])
def test_every_sampler_searches_a_conditional_space(
    make_plan: MakePlan, tmp_path: Path, name: str, objectives: int
) -> None:
    sampler = {"name": name, "seed": 0, "startup_trials": 3}
    plan = make_plan(
        search=SPACE, sampler=sampler, budget={"trials": 6}, objective=TWO[:objectives], constraint=BOUND
    )  # fmt: skip
    trials = run(plan, tmp_path).trials
    assert [trial.state for trial in trials] == ["complete"] * 6
    assert len({trial.params["schedule.eta"] for trial in trials}) >= 5  # it moves
    for trial in trials:
        assert (CONDITIONAL in trial.params) == (trial.params["guidance.guidance_scale"] > 1)
        assert 0.4 <= trial.params["schedule.eta"] <= 1.4
        assert trial.params["training.steps"] in range(4, 9)
        assert trial.feasible == (2.0 * trial.params["schedule.eta"] <= 2.0)


@pytest.mark.parametrize("name", ["tpe", "gp", "qmc", "nsga2", "random"])
def test_a_seed_repeats_the_search_whoever_draws_and_however_often_it_was_interrupted(
    make_plan: MakePlan, tmp_path: Path, name: str
) -> None:
    sampler = {"name": name, "seed": 7, "startup_trials": 3}
    whole = run(make_plan(sampler=sampler, budget={"trials": 6}), tmp_path / "whole")
    folder = tmp_path / "parts"
    for trials in (1, 2, 4, 6):  # each sitting as `amsd sweep run`: one opens the study, a worker of its own joins
        plan = make_plan(sampler=sampler, budget={"trials": trials})
        create(plan, folder, f"journal:{folder}/journal.log")
        Worker(join(str(folder)), Formula()).run()
    parts = results_of(join(str(folder)))
    assert len(parts.trials) == 6
    assert [trial.params for trial in parts.trials] == [trial.params for trial in whole.trials]


def test_random_search_repeats_with_any_number_of_workers(make_plan: MakePlan, tmp_path: Path) -> None:
    sampler = {"name": "random", "seed": 7}
    alone = run(make_plan(sampler=sampler, budget={"trials": 4}), tmp_path / "alone").trials
    folder = tmp_path / "together"
    create(make_plan(sampler=sampler), folder, f"journal:{folder}/journal.log")
    workers = [join(str(folder)) for _ in range(4)]
    asked = [(each, each.trials.ask()) for each in workers]  # all at once: nobody knows a result
    drawn = {trial.number: suggest(each.plan.sweep.search, trial) for each, trial in reversed(asked)}
    assert [drawn[trial.number] for trial in alone] == [trial.settings for trial in alone]


def test_workers_with_one_seed_draw_different_points(make_plan: MakePlan, tmp_path: Path) -> None:
    create(make_plan(), tmp_path, f"journal:{tmp_path}/journal.log")
    workers = [join(str(tmp_path)) for _ in range(3)]
    drawn = [suggest(each.plan.sweep.search, each.trials.ask())["schedule.eta"] for each in workers]
    assert len(set(drawn)) == 3


def test_without_a_seed_two_searches_differ(make_plan: MakePlan, tmp_path: Path) -> None:
    found = [run(make_plan(sampler={"name": "random"}), tmp_path / name).trials[0].params for name in "ab"]
    assert found[0] != found[1]


def test_tpe_finds_the_optimum_of_a_parabola(make_plan: MakePlan, tmp_path: Path) -> None:
    plan = make_plan(
        search={"schedule.eta": {"low": 0.1, "high": 3.1}}, budget={"trials": 40},
        sampler={"name": "tpe", "seed": 0, "startup_trials": 10},
    )  # fmt: skip
    trials = run(plan, tmp_path).trials
    distances = [abs(trial.params["schedule.eta"] - 0.8) for trial in trials]
    # Uniform draws lie 0.79 away on average; TPE 0.36 over twelve seeds, 0.46 at worst.
    assert sum(distances[20:]) / 20 < 0.5
    assert min(distances) < 0.1


@pytest.mark.parametrize("name", ["percentile", "hyperband"])
def test_every_pruner_ends_bad_trials(make_plan: MakePlan, tmp_path: Path, name: str) -> None:
    # Best first, so that every later trial is worse at each of its checkpoints.
    plan = make_plan(
        search={"schedule.eta": {"choices": [0.8 + 0.05 * index for index in range(12)]}},
        sampler={"name": "grid"}, budget={}, pruner={"name": name, "startup_trials": 2, "percentile": 25.0},
    )  # fmt: skip
    executor = Formula()
    results = run(plan, tmp_path, executor)
    trials = results.trials
    assert {trial.state for trial in trials} == {"complete", "pruned"}
    assert trials[0].state == "complete"
    assert executor.ends.count("prune") == sum(trial.state == "pruned" for trial in trials)
    assert results.best is not None
    assert results.best.number == 0
