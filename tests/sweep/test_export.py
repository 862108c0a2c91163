"""What users take out of a sweep: the table, the winning recipe, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from amsd.errors import UsageError
from amsd.recipe import from_dict
from amsd.recipe.load import read_toml
from amsd.sweep.export import as_csv, as_data, winning_recipe
from amsd.sweep.results import SweepResults, load_sweep
from amsd.sweep.study import create
from amsd.sweep.table import overview
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
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(overview(results))
    text = console.export_text()
    assert "4 trials (4 complete)" in text
    assert "Best: #1 (shapes:right = 1.5)" in text
    assert "schedule.eta 100%" in text  # only eta matters to the formula
