"""A process that dies or stands still is named, and the others end: under every launcher, also on other machines.

Each process of a run beats on a thread of its own, through the store that the processes met at. Who does not hear
another one for `PATIENCE` seconds says which one and leaves; nobody waits for the timeout of the collective operations
(half an hour on the CPU). Time is counted in one's own beats, so that a machine that sleeps, or Ctrl-Z for all of them,
harms nothing.
"""

from __future__ import annotations

import atexit
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Protocol

import torch.distributed as dist

from amsd.errors import option

#: Seconds between two beats.
BEAT = 2.0
#: Seconds of silence after which a process is given up; AMSD_PATIENCE is another number of them.
PATIENCE = 60.0
#: Seconds after a failed exchange in which the one that is gone shows by its silence.
LOOK = 4 * BEAT
_DONE = "done"


class Store(Protocol):
    """What is used of `torch.distributed.TCPStore`."""

    def set(self, key: str, value: str) -> object:
        """Keep a value."""

    def check(self, keys: list[str]) -> bool:
        """Whether the keys have values; at once."""

    def get(self, key: str) -> bytes:
        """The value, which is there."""


class Heartbeat:
    """Beats for this process and listens to the others."""

    def __init__(
        self, store: Store, own: int, count: int, give_up: Callable[[str], None], patience: float = PATIENCE
    ) -> None:
        """`give_up` is called once, with what to say, when another process has been silent for too long."""
        self._store, self._own, self._count, self._give_up = store, own, count, give_up
        self._beats = 0
        self._asked = 0
        self._patience = patience
        self._heard: dict[int, bytes] = {}
        self._silent: dict[int, int] = {}
        self._where: dict[int, str] = {}
        self._end = threading.Event()
        self._threads = [
            threading.Thread(target=work, name="amsd-heartbeat", daemon=True) for work in (self._work, self._guard)
        ]

    def start(self) -> None:
        """Begin, on threads that keep Python from ending for two beats at most."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """This process ends in good order: the others do not wait for another beat.

        Threads inside PyTorch while Python ends would abort the process: each call there takes a beat at most.
        """
        was_over = self._end.is_set()
        self._end.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(2 * BEAT)
        if not was_over:
            self._beat(_DONE)

    def turn(self) -> None:
        """One beat, and one look at each of the others."""
        self._beats += 1
        self._beat(str(self._beats))
        for other in range(self._count):
            if self._end.is_set():
                return
            if other == self._own or self._heard.get(other) == _DONE.encode():
                continue
            value = self._ask(_key(other))
            if value is None or value == self._heard.get(other):
                self._silent[other] = self._silent.get(other, 0) + 1
            else:
                self._heard[other], self._silent[other] = value, 0
                if other not in self._where:
                    self._where[other] = (self._ask(f"{_key(other)}/where") or b"").decode("utf-8", "replace")
            if self._silent.get(other, 0) * BEAT >= self._patience:
                self._part_from(self.named(other))
                return

    def quietest(self) -> str | None:
        """The process that has been silent the longest, if any has missed a beat."""
        silent = {other: beats for other, beats in self._silent.items() if beats > 1}
        return self.named(max(silent, key=lambda other: silent[other])) if silent else None

    def named(self, other: int) -> str:
        """Such as `Process 1 of 4 (4711 on node-2)`."""
        where = self._where.get(other)
        return f"Process {other} of {self._count}{f' ({where})' if where else ''}"

    def _work(self) -> None:
        with suppress(RuntimeError):  # the others then know the number alone
            self._store.set(f"{_key(self._own)}/where", f"{os.getpid()} on {socket.gethostname()}")
        while not self._end.is_set():
            self.turn()
            self._end.wait(BEAT)

    def _guard(self) -> None:
        """The store does not even answer that it has no answer: who keeps it stands still."""
        asked, still = -1, 0
        while not self._end.wait(BEAT):
            asked, still = (self._asked, 0) if self._asked != asked else (asked, still + 1)
            if still * BEAT >= self._patience:
                self._part_from(f"{self.named(0)}, or the launcher that keeps the store of the processes,")
                return

    def _part_from(self, whom: str) -> None:
        self._end.set()
        self._give_up(
            f"{whom} has been silent for {self._patience:g} s: it died, was stopped, or its machine cannot be reached. "
            f"The others end too. Continue with {option('resume', 'resume=True')}."
        )

    def _beat(self, value: str) -> None:
        try:
            self._store.set(_key(self._own), value)
        except RuntimeError:  # the store is gone with the process that kept it, whose silence is counted
            return

    def _ask(self, key: str) -> bytes | None:
        try:
            return self._store.get(key) if self._store.check([key]) else None
        except RuntimeError:
            return None
        finally:
            self._asked += 1


def _key(process: int) -> str:
    return f"amsd/beat/{process}"


_running: list[Heartbeat] = []


def begin() -> None:
    """Beat from now on, if this process is one of several; once per process."""
    if _running or not dist.is_initialized() or dist.get_world_size() == 1:
        return
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT", "")
    if not address or not port.isdigit():  # processes that met in another way have its timeouts only
        return
    try:
        # A connection of its own: one that the main thread waits on would hold up the beats.
        limit = timedelta(seconds=BEAT)
        store = dist.TCPStore(address, int(port), is_master=False, timeout=limit)  # type: ignore[attr-defined]
    except RuntimeError:
        return
    _running.append(Heartbeat(store, dist.get_rank(), dist.get_world_size(), _leave, _patience()))
    _running[0].start()
    atexit.register(_running[0].stop)


def _patience() -> float:
    try:
        return max(4 * BEAT, float(os.environ.get("AMSD_PATIENCE", "")))
    except ValueError:
        return PATIENCE


def missing() -> str | None:
    """After an exchange has failed: which process is gone, as far as its silence shows it in `LOOK` seconds."""
    if not _running:
        return None
    deadline = time.monotonic() + LOOK
    while time.monotonic() < deadline:
        time.sleep(BEAT / 4)
        found = _running[0].quietest()
        if found is not None:
            return found
    return None


def _leave(text: str) -> None:
    """The main thread waits in an operation that nothing interrupts: nothing is left to do but to leave."""
    sys.stdout.flush()
    sys.stderr.write(f"[process {dist.get_rank()}] Error: {text}\n")
    sys.stderr.flush()
    os._exit(1)
