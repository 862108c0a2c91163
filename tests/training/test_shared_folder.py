"""Processes on several nodes: whether all of them see one run directory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from amsd.errors import UsageError
from amsd.run_directory import RunDirectory
from amsd.training import shared_folder
from tests.training.threads import as_processes

Run = Callable[[Path, Path], list[str]]


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Run:
    """`require_shared` on two processes (threads here), each with the directory that its node has at the run's path."""
    own, slots, meeting = threading.local(), [None, None], threading.Barrier(2, timeout=60)

    def gather(values: list[Any]) -> list[Any]:
        meeting.wait()
        slots[own.rank] = values[0]
        meeting.wait()
        return list(slots)

    monkeypatch.setattr(shared_folder, "world_size", lambda: 2)
    monkeypatch.setattr(shared_folder, "rank", lambda: own.rank)
    monkeypatch.setattr(shared_folder, "gather", gather)

    def run(*paths: Path) -> list[str]:
        said = ["", ""]

        def process(rank: int) -> None:
            own.rank = rank
            try:
                shared_folder.require_shared(RunDirectory(paths[rank]), patience=0.3)
            except UsageError as error:
                said[rank] = str(error)

        as_processes(process)
        return said

    return run


def test_one_directory_is_seen_by_all_and_left_as_it_was(two: Run, tmp_path: Path) -> None:
    assert two(tmp_path / "run", tmp_path / "run") == ["", ""]  # not there yet
    (tmp_path / "run").mkdir()
    assert two(tmp_path / "run", tmp_path / "run") == ["", ""]
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("there", [("first",), ("second",), ("first", "second")])
def test_directories_of_two_nodes_are_refused_on_both(there: tuple[str, ...], two: Run, tmp_path: Path) -> None:
    for node in there:
        (tmp_path / node / "run").mkdir(parents=True)
    said = two(tmp_path / "first" / "run", tmp_path / "second" / "run")
    for words in said:
        assert "process 1 on" in words
        assert "give output a path" in words
    assert [file for node in there for file in (tmp_path / node / "run").iterdir()] == []
