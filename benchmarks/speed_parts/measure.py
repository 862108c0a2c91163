"""Interleaved timing: every way in turn, several rounds, medians of processor time and of each round's ratio."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median


def interleaved(ways: Mapping[str, Callable[[], object]], rounds: int = 5) -> dict[str, list[float]]:
    """Seconds of processor time of this process, per way and round; one untimed call of each comes first.

    Processor time, because other programs on a machine lengthen the wall clock. Interleaved, because what slows a
    machine for a while then slows every way alike.
    """
    for work in ways.values():
        work()
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, work in ways.items():
            start = time.process_time()
            work()
            found[name].append(time.process_time() - start)
    return found


def ratio(found: Mapping[str, list[float]], of: str, to: str) -> float:
    """Median of the rounds' ratios."""
    return median(one / other for one, other in zip(found[of], found[to], strict=True))


def medians(found: Mapping[str, list[float]]) -> dict[str, float]:
    """Median seconds of each way."""
    return {name: median(values) for name, values in found.items()}
