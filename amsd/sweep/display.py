"""How a sweep that runs here is watched: a live table on a terminal, one line per change in a pipe or a log file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.text import Text

from amsd.sweep.results import SweepResults, TrialResult
from amsd.sweep.table import headline, outcome, overview

#: Trials that the live table shows; the newest ones.
ROWS = 20


@contextmanager
def following(console: Console, read: Callable[[], SweepResults]) -> Iterator[Callable[[], None]]:
    """Inside the block, each call of what is yielded shows what `read` returns then."""
    if not console.is_terminal:
        yield Lines(console, read)
        return
    with Live(headline(read()), console=console, refresh_per_second=1, transient=True) as live:
        yield lambda: live.update(overview(read(), rows=ROWS))


class Lines:
    """Prints a line for every trial that has started or ended since the last call."""

    def __init__(self, console: Console, read: Callable[[], SweepResults]) -> None:
        self._console = console
        self._read = read
        self._seen: dict[int, tuple[str, int]] = {}

    def __call__(self) -> None:
        """Read, compare, print."""
        results = self._read()
        for trial in results.trials:
            now = (trial.state, trial.attempts)
            if trial.state != "queued" and self._seen.get(trial.number) != now:
                self._console.print(self._line(trial, results), highlight=False, soft_wrap=True)
            self._seen[trial.number] = now

    def _line(self, trial: TrialResult, results: SweepResults) -> Text:
        ended = sum(other.state not in ("queued", "running") for other in results.trials)
        total = results.sweep.budget.trials or len(results.trials)
        return Text(f"trial {trial.number} {trial.state}: {outcome(trial, results)} ({ended} of {total} done)")
