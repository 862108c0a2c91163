"""The session `faults` itself: its moments exist, its table goes on after a cut and counts what was lost."""

from __future__ import annotations

import importlib
import random
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    return lambda name: importlib.import_module(f"benchmarks.fault_parts.{name}")


def test_every_moment_is_a_function_of_amsd(parts: Any) -> None:
    moments = parts("runs").MOMENTS
    assert {kind for kind, _, _ in moments} >= {"checkpoint", "evaluation", "tracker upload", "resume"}
    for _, target, _ in moments:
        module, _, path = target.partition(":")
        found: Any = importlib.import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
        assert callable(found)


def test_the_table_goes_on_where_it_was_cut(parts: Any, tmp_path: Path) -> None:
    tally = parts("tally")
    seen: list[tuple[int, float]] = []

    def attempt(number: int, draw: random.Random) -> Any:
        seen.append((number, draw.random()))
        if number == 3 and len(seen) == 4:
            raise KeyboardInterrupt
        said = "Traceback (most recent call last)" if number == 4 else ""
        return tally.Attempt("a step" if number == 2 else "", said, count=0 if number == 1 else 2)

    file = tmp_path / "rows.json"
    with pytest.raises(KeyboardInterrupt):
        tally.TallyTable(file).fill("fault", 8, 0, attempt)
    table = tally.TallyTable(file)
    table.fill("fault", 8, 0, attempt)
    table.fill("nothing", 0, 0, attempt)
    assert [number for number, _ in seen] == [0, 1, 2, 3, 3, 4]
    assert seen[3] == seen[4]  # the same attempt again
    row = table.rows["fault"]
    assert (row.tried, row.lost, row.raw) == (8, 1, 1)
    assert list(table.rows) == ["fault"]
    assert "| fault | 8 | 1 | 1 |" in str(table)
