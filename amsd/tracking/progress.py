"""How far a command is, on standard error: a bar on a terminal, plain lines in a pipe."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

Report = Callable[[str, int, int], None]
"""(what, done, total): some of a work is done; a total of 0 is a work of unknown size."""
INTERVAL = 10.0
"""Seconds between lines in a pipe."""


def silent(what: str, done: int, total: int) -> None:
    """Nobody wants to know."""


class PlainProgress:
    """A line when a work begins, at most one every `INTERVAL` seconds, and one at its end."""

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._clock = say, clock
        self._what = ""
        self._said = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        """Say where a work stands, if it is time to."""
        now = self._clock()
        if what != self._what or (total and done == total) or now - self._said >= INTERVAL:
            self._what, self._said = what, now
            self._say(f"{what}: {done} of {total}" if total else f"{what} ...")


class BarProgress:
    """One bar for each work; a work of unknown size moves until the next one begins."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, tuple[TaskID, bool]] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show where a work stands."""
        if what not in self._tasks:
            self._end_unknown()
            task = self._bars.add_task(what, total=total or None, count=_count(done, total))
            self._tasks[what] = (task, not total)
        task, _ = self._tasks[what]
        self._bars.update(task, completed=done, count=_count(done, total))

    def _end_unknown(self) -> None:
        for what, (task, unknown) in list(self._tasks.items()):
            if unknown:
                self._bars.remove_task(task)
                del self._tasks[what]


def _count(done: int, total: int) -> str:
    return f"{done} of {total}" if total else ""


@contextmanager
def progress() -> Iterator[Report]:
    """Somebody to report to while the block runs; what was shown is gone afterwards on a terminal."""
    console = Console(stderr=True, markup=False)
    if not console.is_terminal:
        yield PlainProgress(print_line)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[count]}", markup=False),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        yield BarProgress(bars)


def print_line(line: str) -> None:
    """A line on standard error, at once."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


@contextmanager
def loading() -> Iterator[None]:
    """Something moves on the main process's terminal while the block imports large libraries, which takes seconds."""
    console = Console(stderr=True, markup=False)
    if not console.is_terminal or os.environ.get("RANK", "0") != "0":
        yield
        return
    with console.status("loading PyTorch and diffusers"):
        yield
