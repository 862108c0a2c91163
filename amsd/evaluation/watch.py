"""Checkpoints of a run as they appear, for an evaluation in another process."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from amsd.run_directory import RunDirectory, damage

_LOG = logging.getLogger(__name__)


def new_checkpoints(
    run: RunDirectory,
    finished: Callable[[], bool],
    wanted: Callable[[Path], bool] = lambda checkpoint: True,
    interval: float = 5.0,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Path]:
    """Yield every whole checkpoint of `run` once, oldest first: those that are there, then new ones.

    Ends after a look that began when `finished()` was true, so the last checkpoint is not missed. `wanted` says whether
    a checkpoint is of interest at all (not evaluated yet). Damaged checkpoints are named and passed over; those that
    retention removed in the meantime are passed over silently.
    """
    seen: set[int] = set()
    while True:
        last = finished()
        for step in run.steps():
            checkpoint = run.checkpoint(step)
            if step in seen or not (checkpoint / "manifest.json").is_file():
                continue
            seen.add(step)
            if not wanted(checkpoint):
                continue
            problem = damage(checkpoint)
            if problem is None:
                yield checkpoint
            elif checkpoint.is_dir():
                _LOG.warning("%s is damaged, so amsd skips it: %s", checkpoint, problem)
        if last:
            return
        sleep(interval)
