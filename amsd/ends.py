"""Ends that are announced by a signal: Ctrl-C, and SIGTERM, SIGUSR1, SIGUSR2, SIGHUP of schedulers and terminals.

A signal is a wish that a training obeys at the next good moment: after the step in hand, after the checkpoint that is
being written, at once where nothing would be lost. A second signal drops the step in hand.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, auto
from types import FrameType, TracebackType
from typing import Any

INTERRUPTED = 130
"""Exit code after Ctrl-C."""
REQUEUE = 75
"""Exit code after the other signals (EX_TEMPFAIL): the same command with `--resume` goes on."""
NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP")
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))


class AnnouncedEnd(KeyboardInterrupt):
    """A training ends because a signal asked it to."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def signal_name(self) -> str:
        """Such as `SIGTERM`."""
        return signal.Signals(self.number).name

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, 75 after any other signal."""
        return code_of(self.number)


class Ends:
    """Listens to the signals between `with` and its end, in the main thread; elsewhere nothing is ever announced.

    Unless told otherwise a signal raises `AnnouncedEnd` at once.
    """

    def __init__(self, alone: bool | None = None) -> None:
        """`alone` is whether no other process must agree before a step is dropped (unset: by WORLD_SIZE)."""
        self._alone = int(os.environ.get("WORLD_SIZE", "1")) == 1 if alone is None else alone
        self.number: int | None = None
        """The first signal that came."""
        self._count = 0
        self._wait = _Wait.NONE
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Ends:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # such as SIGHUP under nohup
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
        self.number = self.number or number
        if self._wait is _Wait.NONE or (self._wait is _Wait.STEP and self._count > 1 and self._alone):
            raise AnnouncedEnd(self.number)

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """Inside, the first signal waits; a second one raises, unless `hold` was called meanwhile."""
        with self._waiting(_Wait.STEP):
            yield

    def hold(self) -> None:
        """Until the end of the surrounding `finishing`, nothing raises: what is half done would be lost."""
        self._wait = _Wait.ALL

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, nothing raises; ask for `number` afterwards."""
        with self._waiting(_Wait.ALL):
            yield

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, a signal raises at once, also one that came just before."""
        with self._waiting(_Wait.NONE):
            if self.number:
                raise AnnouncedEnd(self.number)
            yield

    @contextmanager
    def _waiting(self, wait: _Wait) -> Iterator[None]:
        before, self._wait = self._wait, wait
        try:
            yield
        finally:
            self._wait = before


class _Wait(Enum):
    """Which signals wait for a better moment."""

    NONE = auto()
    STEP = auto()
    """The first one."""
    ALL = auto()


def code_of(number: int | None) -> int:
    """Exit code of what a signal has ended; None is Ctrl-C."""
    return INTERRUPTED if number in (None, signal.SIGINT) else REQUEUE


def ignore() -> None:
    """Let no signal disturb a process that is ending."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
