"""How far a command is, on standard error: a bar on a terminal, plain lines in a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Report = Callable[[str, int, int], None]
"""(what, done, total): some of a work of known size is done."""
INTERVAL = 10.0
"""Seconds between lines in a pipe."""


class PlainProgress:
    """A line when a work begins, at most one every `INTERVAL` seconds, and one at its end."""

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._clock = say, clock
        self._what = ""
        self._said = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        """Say where a work stands, if it is time to."""
        now = self._clock()
        if what != self._what or done == total or now - self._said >= INTERVAL:
            self._what, self._said = what, now
            self._say(f"{what}: {done} of {total}")


@contextmanager
def progress() -> Iterator[Report]:
    """Somebody to report to while the block runs; what was shown is gone afterwards on a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield PlainProgress(print_line)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        tasks = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        yield report


def print_line(line: str) -> None:
    """A line on standard error, at once."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


@contextmanager
def working(what: str) -> Iterator[None]:
    """Show what is going on where its size is unknown."""
    console = Console(stderr=True)
    if not console.is_terminal:
        print_line(f"{what} ...")
        yield
        return
    with console.status(what):
        yield
