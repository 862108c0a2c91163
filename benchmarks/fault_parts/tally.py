"""The rows of the table, kept on disk after every attempt, so that a session that was cut off goes on."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

RAW = ("Traceback (most recent call last)", "shows the traceback)")
"""What a user must never read."""


@dataclass
class Tally:
    """One row."""

    what: str
    attempts: int = 0
    tried: int = 0
    """Disturbances: an attempt may have several, or none that came."""
    lost: int = 0
    """Attempts after which something was missing or differed, or that did not go on."""
    raw: int = 0
    """Attempts that ended with a traceback or an error of a library."""
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    """What went wrong, and what is measured."""


@dataclass
class Attempt:
    """What became of one attempt."""

    fault: str = ""
    """What was lost, in words; empty if nothing."""
    said: str = ""
    """Everything that the commands said."""
    count: int = 1
    """How many disturbances it had."""
    note: str = ""
    """A measured value."""


class TallyTable:
    """All rows, in a file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.rows: dict[str, Tally] = {}
        if file.is_file():
            self.rows = {name: Tally(**row) for name, row in json.loads(file.read_text(encoding="utf-8")).items()}

    def fill(self, what: str, count: int, seed: int, attempt: Callable[[int, random.Random], Attempt]) -> None:
        """Try until the row has `count` disturbances; the n-th attempt is the same in every session."""
        if not count:
            return
        row = self.rows.setdefault(what, Tally(what))
        while row.tried < count:
            began = time.monotonic()
            number = row.attempts
            done = attempt(number, random.Random(f"{seed}/{what}/{number}"))
            row.attempts += 1
            row.tried += done.count
            row.lost += bool(done.fault)
            raw = next((mark for mark in RAW if mark in done.said), None)
            row.raw += raw is not None
            row.seconds += time.monotonic() - began
            if done.note:
                row.notes.append(f"{number}: {done.note}")
            if done.fault or raw:
                row.notes.append(f"{number}: {done.fault or raw}\n{done.said[-1500:]}")
            self.save()

    def save(self) -> None:
        """Write the file."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        aside = self._file.with_suffix(".tmp")
        aside.write_text(json.dumps({name: asdict(row) for name, row in self.rows.items()}, indent=1), encoding="utf-8")
        aside.replace(self._file)

    def __str__(self) -> str:
        head = ["| what | tried | lost | raw | minutes |", "|---|---|---|---|---|"]
        rows = [f"| {r.what} | {r.tried:,} | {r.lost} | {r.raw} | {r.seconds / 60:.1f} |" for r in self.rows.values()]
        return "\n".join([*head, *rows])
