"""`RUN/metrics.jsonl`: one JSON object per line, always written, readable at any moment, also after a crash.

A step, an evaluation and a notice are told apart by the keys `evaluation` and `notice`. Values that are not finite are
written as `null`, so that every line is standard JSON.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from amsd.errors import RunError
from amsd.files import write_text, writing
from amsd.tracking.log import parse
from amsd.tracking.protocol import FINISHED, RunInfo, Tracker
from amsd.tracking.values import evaluation_values
from amsd.training.events import CheckpointRecord, Notice, StepRecord

if TYPE_CHECKING:
    from amsd.evaluation.result import EvaluationResult


class JsonlTracker(Tracker):
    """Appends to `RUN/metrics.jsonl`.

    On a resume from step s every line of a later step is dropped first, and what a resumed run says again (the base
    model's evaluation, a notice) is written only if it differs: the file reads as that of one uninterrupted run.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._stream: TextIO | None = None
        self._path = Path()
        self._step = 0
        self._said: set[str] = set()

    def on_start(self, info: RunInfo) -> None:
        """Trim what lies there already and open the file.

        Raises:
            RunError: the file cannot be read or written.
        """
        self._path = info.run.metrics
        self._step = info.resumed_from or 0
        try:
            kept = trim(self._path, self._step)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self._path.open("a", encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RunError(f"{self._path}: cannot be used for the metrics of the run: {error}") from error
        self._said = {_content(entry) for entry in kept if "evaluation" in entry or "notice" in entry}

    def on_step(self, record: StepRecord) -> None:
        """Write a line of the step's values."""
        self._step = record.step
        self._write({"step": record.step, "time": self._clock(), **record.values})

    def on_checkpoint(self, record: CheckpointRecord) -> None:
        """Make everything up to the checkpoint durable: a resume from it needs these lines."""
        if self._stream is not None:
            os.fsync(self._stream.fileno())

    def on_evaluation(self, step: int, results: Sequence[EvaluationResult], pictures: Mapping[str, Path]) -> None:
        """Write a line of every evaluation setting's values."""
        for result in results:
            key = {"key": result.key} if result.key else {}
            self._write_once({"step": step, "evaluation": result.name, **key, **evaluation_values(result)})

    def on_notice(self, notice: Notice) -> None:
        """Write a line, unless it was written before the run was resumed."""
        values = {"values": dict(notice.values)} if notice.values else {}
        self._write_once({"step": notice.step, "notice": notice.kind, "text": notice.text, **values})

    def on_end(self, status: str, error: str | None) -> None:
        """Write the reason of a failure, under the step that was not completed, and close the file."""
        if self._stream is None:
            return
        if status != FINISHED:
            with suppress(RunError):  # of a full disk the run's own error tells
                self._write_once({"step": self._step + 1, "notice": status, "text": error or status})
        with suppress(OSError):
            self._stream.close()
        self._stream = None

    def _write_once(self, entry: dict[str, Any]) -> None:
        content = _content(entry)
        if content not in self._said:
            self._said.add(content)
            self._write({**entry, "time": self._clock()})

    def _write(self, entry: dict[str, Any]) -> None:
        if self._stream is None:
            raise RuntimeError("on_start was not called")
        with writing(self._path):
            self._stream.write(json.dumps(_plain(entry), allow_nan=False) + "\n")
            self._stream.flush()


def trim(path: Path, step: int) -> list[dict[str, Any]]:
    """Drop, atomically, what was said after `step` and lines that are torn; return what is kept.

    The first line of a later step ends the file: whatever follows it was said later too, and will be said again.
    """
    if not path.is_file():
        return []
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        entry = parse(line)
        if entry is not None and entry.kind == "step" and entry.step > step:
            break
        if entry is not None and entry.step <= step:
            kept.append(line)
    write_text(path, "".join(line + "\n" for line in kept))
    return [json.loads(line) for line in kept]


def _plain(value: Any) -> Any:
    """The value with None for floats that JSON does not know."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _content(entry: Mapping[str, Any]) -> str:
    """What a line says, without the time at which it was written."""
    return json.dumps(_plain({key: value for key, value in entry.items() if key != "time"}), sort_keys=True)
