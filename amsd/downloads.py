"""How far a download from the hub is, where no bar can be seen: plain lines in a pipe.

The hub's client shows bars on a terminal and nothing in a pipe, whoever calls it (diffusers, transformers, datasets).
So what grows in the client's cache is watched, whoever downloads.
"""

from __future__ import annotations

import os
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

INTERVAL = 10.0
"""Seconds between lines."""
_BLOCK = 512
"""Bytes of the blocks that `st_blocks` counts (POSIX leaves it open; Linux and macOS have 512)."""
_GLANCE = 0.5
"""Seconds between looks at the cache."""


@contextmanager
def told(name: str, folder: Path) -> Iterator[None]:
    """Inside, say on standard error what arrives in the cache's `folder` of the repository `name`.

    Silent on a terminal, where the client draws bars, if `HF_HUB_DISABLE_PROGRESS_BARS` is set, on all but the first
    process of a machine, and if nothing arrives.
    """
    hidden = os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS", "").upper() in ("1", "ON", "YES", "TRUE")
    if sys.stderr.isatty() or hidden or os.environ.get("LOCAL_RANK", "0") != "0":
        yield
        return
    watch = _Watch(name, folder)
    ended = threading.Event()
    watcher = threading.Thread(target=watch.until, args=(ended,), name="downloads", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
    watch.conclude()


class _Watch:
    """What has arrived in a folder since it began."""

    def __init__(self, name: str, folder: Path) -> None:
        self._name, self._folder = name, folder
        self._before = _size(folder, 0)
        self._began = time.monotonic()
        self._said: float | None = None

    def until(self, ended: threading.Event) -> None:
        """Look until it has ended; the first line comes with the first bytes."""
        while not ended.wait(_GLANCE):
            arrived, now = _size(self._folder, _BLOCK) - self._before, time.monotonic()
            if arrived > 0 and (self._said is None or now - self._said >= INTERVAL):
                rate = arrived / (now - self._began)
                _say(f"downloading {self._name} from the hub: {_bytes(arrived)} so far, {_bytes(rate)}/s")
                self._said = now

    def conclude(self) -> None:
        """Say what has arrived in all."""
        arrived = _size(self._folder, 0) - self._before
        if arrived > 0:
            _say(f"downloaded {self._name} from the hub: {_bytes(arrived)} in {time.monotonic() - self._began:.0f} s")


def _size(folder: Path, block: int) -> int:
    """Bytes of the files in a folder's tree, links left out.

    With a `block` size in bytes, a file counts as its blocks on the disk: some clients make it full size at first.
    """
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                found = Path(place, name).lstat()
            except OSError:  # renamed meanwhile
                continue
            if stat.S_ISREG(found.st_mode):
                total += min(found.st_size, found.st_blocks * block) if block else found.st_size
    return total


def _bytes(count: float) -> str:
    """A number of bytes for a reader, such as `4.27 GB`."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
