"""The comparison's runs on several processes: each takes the next part that nobody has, until all are done.

A part is held by a lock that the system takes back when its process ends, so that several commands can share a folder
and a killed one leaves nothing behind but a run that goes on where it was stopped.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import typer
from parts import FACTORS, Contender, Length, run
from results import chosen_factor


@dataclass(frozen=True)
class Leaderboard:
    """What is to be run."""

    out: Path
    """Folder of the results of this length."""
    length: Length
    models: Sequence[str]
    methods: Sequence[str]
    seeds: int
    factors: Sequence[float] = FACTORS

    def parts(self) -> Iterator[Contender | None]:
        """All parts, the sweeps of all models first; None for one that waits for its method's learning rate."""
        for factor in self.factors:
            for model in self.models:
                yield from (Contender(model, name, factor, 0) for name in self.methods)
        for model in self.models:
            for seed in range(1, self.seeds):
                for name in self.methods:
                    swept = [Contender(model, name, factor, 0) for factor in self.factors]
                    known = all(part.result(self.out).is_file() for part in swept)
                    yield (
                        Contender(model, name, chosen_factor(self.out, model, name, self.factors), seed)
                        if known
                        else None
                    )


def run_all(plan: Leaderboard, processes: int, seconds: float | None) -> None:
    """Run what is missing on `processes` processes; after `seconds`, if given, what has not ended is stopped."""
    deadline = None if seconds is None else time.monotonic() + seconds
    if processes == 1 and seconds is None:
        _work(plan)
        return
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_work, args=(plan,), daemon=True) for _ in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
    for worker in workers:
        worker.kill()  # at once: a part that has not ended is begun again, or goes on from its newest checkpoint
        worker.join()
    if deadline is None and (failed := [worker.exitcode for worker in workers if worker.exitcode]):
        raise SystemExit(f"{len(failed)} of {processes} processes failed; their messages are above.")


def _work(plan: Leaderboard) -> None:
    """Take parts until none is left for this process."""
    while True:
        left = [part for part in plan.parts() if part is None or not part.result(plan.out).is_file()]
        for part in left:
            if part is None:
                continue
            with _held(part, plan.out) as held:
                if held and not part.result(plan.out).is_file():
                    took = run(part, plan.out, plan.length)
                    typer.echo(f"{part}: {took:.0f} s")
                    break
        else:
            if None not in left:
                return  # what is left is held by other processes
            time.sleep(1.0)


@contextmanager
def _held(part: Contender, out: Path) -> Iterator[bool]:
    """Whether this process has the part to itself inside the block."""
    lock = part.result(out).with_suffix(".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
