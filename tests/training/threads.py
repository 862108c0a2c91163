"""Processes of a run as threads of one test."""

from __future__ import annotations

import threading
from collections.abc import Callable


def as_processes(work: Callable[[int], None], count: int = 2) -> None:
    """Run `work(rank)` for every rank at once, until all have ended."""
    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
