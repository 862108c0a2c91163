"""What users take out of a sweep: the table, the winning recipe, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from amsd.errors import UsageError
from amsd.recipe import from_dict
from amsd.recipe.load import read_toml
from amsd.sweep.display import overview
from amsd.sweep.export import as_csv, as_data, winning_recipe
from amsd.sweep.jobs import Job
from amsd.sweep.load import load_plan
from amsd.sweep.results import SweepResults, load_sweep, results_of
from amsd.sweep.study import create
from amsd.sweep.worker import Worker
from tests.sweep.conftest import MakePlan
from tests.sweep.formula import Formula


@pytest.fixture
def results(make_plan: MakePlan, tmp_path: Path) -> SweepResults:
    plan = make_plan(
        search={"guidance.guidance_scale": {"choices": [1.0, 5.0]}, "schedule.eta": {"choices": [0.5, 0.8]}},
        sampler={"name": "grid"}, budget={}, seeds=[3],
    )  # fmt: skip
    Worker(create(plan, tmp_path), Formula()).run()
    return load_sweep(tmp_path)


def test_the_winning_recipe_trains_the_best_point(results: SweepResults, tmp_path: Path) -> None:
    (tmp_path / "best.toml").write_text(winning_recipe(results))
    recipe = from_dict(read_toml(tmp_path / "best.toml"))
    assert (recipe.guidance.guidance_scale, recipe.schedule.eta, recipe.training.seed) == (1.0, 0.8, 3)
    assert recipe.tracking.name == "small-best"
    with pytest.raises(UsageError, match="has no trial 9"):
        winning_recipe(results, 9)


def test_a_sweep_that_has_not_run_has_no_winner(make_plan: MakePlan, tmp_path: Path) -> None:
    create(make_plan(), tmp_path)
    with pytest.raises(UsageError, match="no best trial yet"):
        winning_recipe(load_sweep(tmp_path))


def test_tables(results: SweepResults) -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(results))))
    assert [row["cfg_mode"] for row in rows] == ["no guidance"] * 2 + ["CFG trajectories"] * 2
    assert [float(row["shapes:right"]) for row in rows] == pytest.approx([1.41, 1.5] * 2)
    data = json.loads(json.dumps(as_data(results), allow_nan=False))
    assert data["best"] == 1
    assert data["trials"][1]["values"] == pytest.approx([1.5])
    assert {row["shapes:right standard error"] for row in rows} == {"0.02"}
    text = shown(results)
    assert "4 trials (4 complete)" in text
    assert "Best: #1 shapes:right = 1.500 ± 0.020" in text
    assert "Importance" not in text  # four trials say nothing
    assert data["importance"] == {}


def shown(results: SweepResults, width: int = 80) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(overview(results))
    return console.export_text()


def test_errors_of_several_seeds_are_over_seeds(make_plan: MakePlan, tmp_path: Path) -> None:
    plan = make_plan(search={"schedule.eta": {"choices": [0.8]}}, sampler={"name": "grid"}, budget={}, seeds=[0, 1, 2])
    Worker(create(plan, tmp_path), Formula()).run()
    results = load_sweep(tmp_path)
    # Seeds 0, 1, 2 give 0, 0.5, 1: a standard deviation of 0.5 over three.
    assert results.trials[0].error_of("shapes:right") == pytest.approx(0.5 / 3**0.5)
    assert "0.50 ± 0.29" in shown(results)
    assert "mean and standard error over seeds [0, 1, 2]" in winning_recipe(results)


def test_every_key_of_the_users_search_fits_a_terminal_of_eighty_columns(tmp_path: Path) -> None:
    plan = load_plan("cfg-eta", ["budget.trials=3"])
    Worker(create(plan, tmp_path), Formula()).run()
    lines = [line.rstrip() for line in shown(load_sweep(tmp_path)).splitlines()]
    assert max(map(len, lines)) <= 80
    (row,) = [line.strip("* ").split() for line in lines if line.strip("* ").startswith("0  complete")]
    assert row[2:9] == ["5", "false", "false", "1", "-0.040", "±", "0.020"]


def test_a_running_trial_says_where_it_is(make_plan: MakePlan, tmp_path: Path) -> None:
    handle = create(make_plan(seeds=[0, 1]), tmp_path)
    seen: list[str] = []

    def value(job: Job) -> float:
        job.run.mkdir(parents=True, exist_ok=True)
        lines = [{"step": 3, "loss": 1.0}, {"step": 3, "evaluation": "setting"}]
        (job.run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4, "lo')
        seen.append(shown(results_of(handle)))
        return 1.0

    Worker(handle, Formula(value)).run()
    assert "step 3 of 4, seed 1 of 2" in seen[0]
    assert re.search(r"running .* \d:\d\d ", seen[0])
