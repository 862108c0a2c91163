"""Waiting for something to happen, however busy the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path


def until(condition: Callable[[], bool], seconds: float = 600) -> None:
    """Return as soon as `condition` holds; fail if it does not within `seconds`, which only bounds a hang."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not happen within {seconds:g} s"
        time.sleep(0.05)


def gone(pid: int) -> bool:
    """Whether a process has ended (a zombie has)."""
    try:
        return "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]
    except FileNotFoundError:
        return True
