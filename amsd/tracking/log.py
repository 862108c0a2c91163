"""Reading `RUN/metrics.jsonl`: what its lines mean, for reports, sweeps and a resumed run alike.

A line is a step, an evaluation (key `evaluation`) or a notice (key `notice`). Lines that are torn, because a process
was killed while it wrote, are counted and passed over.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from amsd.reading import parsed_object

ENDINGS = ("failed", "interrupted")
"""Notices with which a run ends before its time."""
NOT_VALUES = ("step", "time", "evaluation", "key", "notice", "text", "values")
"""Keys of a line that are not logged scalars."""


@dataclass(frozen=True)
class LogEntry:
    """One line of metrics.jsonl."""

    kind: Literal["step", "evaluation", "notice"]
    step: int
    values: Mapping[str, float]
    """Scalars by name; NaN where the line says null."""
    time: float | None = None
    """Unix time, seconds."""
    name: str = ""
    """The evaluation setting, or the kind of the notice."""
    key: str = ""
    """Of an evaluation: what it shares with results that differ in their weights only (`EvaluationResult.key`)."""
    text: str = ""
    """Of a notice."""


@dataclass(frozen=True)
class Log:
    """A part of the file."""

    entries: tuple[LogEntry, ...] = ()
    broken: int = 0
    """Lines that cannot be read."""
    end: int = 0
    """Offset in bytes after the last whole line."""


@dataclass
class LogFollower:
    """Reads a file that grows: every line once, a file that was rewritten (by a resumed run) from its start."""

    path: Path
    _offset: int = field(default=0, init=False)

    def new(self) -> tuple[Log, bool]:
        """The whole lines since the last call, and whether the file was rewritten, so that older lines are void."""
        if not self.path.is_file():
            return Log(), False
        rewritten = self.path.stat().st_size < self._offset
        log = read_log(self.path, 0 if rewritten else self._offset, torn=False)
        self._offset = log.end
        return log, rewritten


def read_log(path: Path, offset: int = 0, torn: bool = True) -> Log:
    """The lines of a log from a byte offset on; a last line without its end counts as broken only where `torn`.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as stream:
        stream.seek(offset)
        data = stream.read()
    whole = data.rfind(b"\n") + 1
    lines = (data if torn else data[:whole]).decode("utf-8", errors="replace").splitlines()
    found = [parse(line) for line in lines if line.strip()]
    entries = tuple(entry for entry in found if entry is not None)
    return Log(entries, len(found) - len(entries), offset + whole)


def parse(line: str) -> LogEntry | None:
    """What a line says, or None if it is not a whole one."""
    try:
        data = parsed_object(line)
    except ValueError:
        return None
    step = data.get("step")
    if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < 2**63:
        return None
    kind: Literal["step", "evaluation", "notice"] = "step"
    if "notice" in data:
        kind = "notice"
    elif "evaluation" in data:
        kind = "evaluation"
    values = {name: number for name, value in data.items() if (number := _scalar(name, value)) is not None}
    name = str(data.get("notice" if kind == "notice" else "evaluation", ""))
    time = _scalar("", data.get("time", "")) if "time" in data else None
    return LogEntry(kind, step, values, time, name, str(data.get("key", "")), str(data.get("text", "")))


def lost_steps(path: Path, step: int) -> str:
    """What a damaged log no longer tells of the first `step` optimizer steps, in a sentence; empty if nothing is lost.

    A last line that is torn, because a process was killed while it wrote, is no damage: its step is made again.
    """
    log = read_log(path) if path.is_file() else Log()
    told = {entry.step for entry in log.entries if entry.kind == "step" and 1 <= entry.step <= step}
    missing = step - len(told)
    if not missing:
        return ""
    count = f"{missing} of the first {step} steps {'is' if missing == 1 else 'are'}"
    return (
        f"{path.name} is damaged: {count} missing. The checkpoint is whole, so training continues. "
        "Curves and reports have a gap."
    )


def stopped(path: Path) -> bool:
    """Whether the file's last whole line says that the run failed or was interrupted, and was not resumed since."""
    entries = read_log(path).entries if path.is_file() else ()
    return bool(entries) and entries[-1].kind == "notice" and entries[-1].name in ENDINGS


def _scalar(name: str, value: Any) -> float | None:
    if name in NOT_VALUES:
        return None
    if value is None:  # how the log writes NaN and infinity
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) < sys.float_info.max else math.inf
