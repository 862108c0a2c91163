"""Reads `metrics.jsonl` of a run while it grows."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from amsd.run_directory import RunDirectory
from amsd.sweep.executor import RunLog

#: Bytes at the end of a log that hold its last step: a line has about two thousand.
_TAIL = 32768


class Follower:
    """Collects what a run has logged; each line is read once, a rewritten file from its start.

    The log, not the checkpoints' own files, is followed: retention may remove a checkpoint before it is looked at.
    """

    def __init__(self, run: Path) -> None:
        self._run = RunDirectory(run)
        self._offset = 0
        self._evaluations: dict[int, dict[str, dict[str, float]]] = {}
        self._training: dict[int, dict[str, float]] = {}

    def read(self) -> RunLog:
        """Everything logged so far; an unfinished last line waits for the next call."""
        for line in self._new_lines():
            self._take(line)
        best = self._run.pointer("best")
        return RunLog(
            evaluations={step: dict(settings) for step, settings in self._evaluations.items()},
            training=dict(self._training),
            best_step=int(best.name.removeprefix("step-")) if best else None,
        )

    def _new_lines(self) -> list[bytes]:
        path = self._run.metrics
        if not path.is_file():
            return []
        if path.stat().st_size < self._offset:  # rewritten by a resumed run
            self._offset = 0
            self._evaluations.clear()
            self._training.clear()
        with path.open("rb") as stream:
            stream.seek(self._offset)
            data = stream.read()
        whole = data.rfind(b"\n") + 1
        self._offset += whole
        return data[:whole].splitlines()

    def _take(self, line: bytes) -> None:
        try:
            record = json.loads(line)
        except ValueError:  # half a line, left where a killed run stopped writing
            return
        if not _is_measured(record):
            return
        step = record["step"]
        scalars = {key: number for key, value in record.items() if (number := _number(value)) is not None}
        if "evaluation" in record:
            self._evaluations.setdefault(step, {})[str(record["evaluation"])] = scalars
        else:
            self._training[step] = scalars


def last_step(run: Path) -> int | None:
    """Last optimizer step in a run's log, from the log's last lines; None where there is none."""
    file = RunDirectory(run).metrics
    if not file.is_file():
        return None
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - _TAIL))
        lines = stream.read().splitlines()
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except ValueError:  # half a line, at either end of what was read
            continue
        if _is_measured(record):
            return int(record["step"])
    return None


def _is_measured(record: Any) -> bool:
    """Whether this is a line of a step or an evaluation, and not a notice, which may name any step."""
    return isinstance(record, dict) and isinstance(record.get("step"), int) and "notice" not in record


def _number(value: Any) -> float | None:
    if value is None:  # how JSON says NaN here
        return math.nan
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
