"""`nox -s bench`: the reference's procedure costs what was counted of it, amsd costs less, and results are readable."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
DOCS = BENCHMARKS.parent / "docs" / "performance.md"


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of the benchmark by name, imported as the script imports it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return lambda name: importlib.import_module(f"speed_parts.{name}")


@pytest.mark.slow
def test_the_reference_costs_what_hooks_on_it_counted(part: Any) -> None:
    counts = part("counts")
    chosen = [p for p in counts.PROCEDURES if p.name in ("reference, on-policy", "amsd, on-policy")]
    chosen += [p for p in counts.PROCEDURES if p.name == "reference, buffer of 10 passes"]
    rows = {row["procedure"]: row for row in counts.measure(chosen, rounds=1)}
    assert rows["reference, on-policy"]["forwards"] == 212.0
    assert rows["reference, buffer of 10 passes"]["forwards"] == 32.0
    assert rows["amsd, on-policy"]["forwards"] < 212.0
    assert all(row["seconds"] > 0 for row in rows.values())


@pytest.mark.slow
def test_a_small_race_is_run_once_and_judged_on_common_noise(part: Any, tmp_path: Path) -> None:
    race, page = part("race"), part("page")
    small = race.Race(
        updates=2,
        on_policy_updates=2,
        buffer_updates=2,
        batch=2,
        reference_steps=6,
        steps=6,
        samples=1,
        every=1,
        loss_steps=2,
    )
    race.run_missing(tmp_path, small, seeds=1)
    points = race.read(tmp_path)
    assert {name for name, _ in points} == set(race.RUNNERS)
    starts = {found[0].by_prompt for found in points.values()}
    assert len(starts) == 1, "all start from the base model on the same noise"
    assert points["amsd on-policy", 0][-1].forwards < points["reference", 0][-1].forwards
    before = (tmp_path / "race-reference-0.json").stat().st_mtime_ns
    race.run_missing(tmp_path, small, seeds=1)
    assert (tmp_path / "race-reference-0.json").stat().st_mtime_ns == before
    page.write(tmp_path, {"machine": page.machine()}, None)
    assert (tmp_path / "race.svg").read_text().startswith("<?xml")
    assert "amsd buffer" in (tmp_path / "speed.md").read_text()


def test_the_outcome_is_the_first_policy_that_is_as_good(part: Any) -> None:
    race = part("race")
    reference = [race.RacePoint(0, 0, 0, 0.0, (0.0, 0.0)), race.RacePoint(9, 1000, 10, 0.3, (0.2, 0.4))]
    mine = [
        race.RacePoint(0, 0, 0, 0.0, (0.0, 0.0)), race.RacePoint(3, 100, 1, 0.1, (0.1, 0.1)),
        race.RacePoint(6, 200, 2, 0.35, (0.3, 0.4)), race.RacePoint(9, 300, 3, 0.5, (0.5, 0.5)),
    ]  # fmt: skip
    found = race.outcome(reference, mine, seed=1)
    assert (found.work, found.time, found.seed) == (0.2, 0.2, 1)
    assert found.difference == pytest.approx(0.05)
    assert found.standard_error == pytest.approx(0.05)
    slow = race.outcome(reference, mine[:2], seed=1)
    assert slow.work is None
    assert slow.difference == pytest.approx(-0.2)


def test_recorded_calls_are_made_again(part: Any) -> None:
    """A replay costs the calls of the step: as many forward passes, and backward passes of the same kinds."""
    ratios = part("ratios")
    layer = torch.nn.Linear(3, 3)
    frozen = torch.nn.Linear(3, 3).requires_grad_(False)

    class Network(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            return (self.inner(x),)

    trained, base = Network(layer), Network(frozen)
    recorded = ratios.Recorded([trained, base])
    with torch.no_grad():
        trained(torch.ones(2, 3))
    base(torch.ones(2, 3, requires_grad=True))
    trained(torch.ones(4, 3))[0].sum().backward()
    recorded.stop()
    trained(torch.ones(1, 3))
    assert len(recorded.calls) == 3
    before = layer.weight.grad.clone()
    recorded.replay()
    assert torch.equal(layer.weight.grad, 2 * before), "the loss's call alone reaches the parameters"
    assert frozen.weight.grad is None


def test_growth_is_the_slope_of_the_logarithms(part: Any) -> None:
    assert part("growth").exponent({"2": 1.0, "4": 2.0, "16": 8.0}) == pytest.approx(1)


def test_the_sizing_table_is_the_cost_model(part: Any) -> None:
    """165, 25, 44 and 13 TFLOP were counted for these four settings by hand (method.md section 7)."""
    sizing = part("sizing")
    found = [sizing.tflop_per_trajectory(recipe) for recipe in sizing.recipes().values()]
    assert found == pytest.approx([165, 25, 44, 13], rel=0.1)
    lines = list(sizing.table())
    assert len({line.count("|") for line in lines}) == 1


def test_the_page_holds_the_tables_of_today(part: Any) -> None:
    text = DOCS.read_text()
    assert "\n".join(part("sizing").table()) in text
    with pytest.raises(ValueError, match="measured"):
        part("page").replaced("no marks", "measured", "x")


def test_stored_results_name_no_machine() -> None:
    stored = json.loads((BENCHMARKS / "results" / "speed.json").read_text())
    import platform

    assert stored["machine"]["versions"]["torch"]
    assert platform.node() not in json.dumps(stored["machine"]).split('"')
