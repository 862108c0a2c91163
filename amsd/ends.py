"""Ends that are announced by a signal: Ctrl-C, and SIGTERM, SIGUSR1, SIGUSR2, SIGHUP of schedulers and terminals.

A signal ends a command at once, as an exception: what is half written is deleted on the way out. For a training it is a
wish that is obeyed at the next good moment: after the step in hand, after the checkpoint that is being written, at once
where nothing would be lost. A second signal drops the step in hand.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
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
_ECHO = 1.0
"""Seconds in which another signal is the same wish: launchers tell a process and its group. Cleaning up goes on."""


class AnnouncedEnd(KeyboardInterrupt):
    """A command ends because a signal asked it to."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        """0 is a signal that came to another process."""
        self.kept = ""
        """What is left of the work and how it goes on, as sentences (see `keeping`)."""

    @property
    def signal_name(self) -> str:
        """Such as `SIGTERM`."""
        return signal.Signals(self.number).name if self.number else "A signal"

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
        self._raised = -_ECHO
        self._process = os.getpid()
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
        if os.getpid() != self._process:  # a fork, such as a worker of somebody's pool: nothing of this is its own
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self._count += 1
        self.number = self.number or number
        if self._wait is _Wait.NONE or (self._wait is _Wait.STEP and self._count > 1 and self._alone):
            now, before = time.monotonic(), self._raised
            self._raised = now
            if now - before >= _ECHO:
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


@contextmanager
def keeping(describe: Callable[[], str]) -> Iterator[None]:
    """Inside, an announced end says what `describe` tells: what is left of the work and how it goes on.

    The innermost one counts.
    """
    try:
        yield
    except AnnouncedEnd as end:
        end.kept = end.kept or describe()
        raise


def announced(error: BaseException | None) -> AnnouncedEnd | None:
    """The announced end that `error` is or comes from; None if it has another cause.

    Whoever runs a command may have turned it into something else, as Typer does.
    """
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return error if isinstance(error, AnnouncedEnd) else AnnouncedEnd(signal.SIGINT)
        error = error.__cause__ or error.__context__
    return None


def is_free(number: int) -> bool:
    """Whether nobody but amsd listens to a signal, and it is not ignored."""
    handler = signal.getsignal(number)
    return handler is signal.SIG_DFL or isinstance(getattr(handler, "__self__", None), Ends)


def leave_at_once(code: int) -> None:
    """From here on a signal ends this process with `code`: all is done and said, and only the interpreter cleans up."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, frame: os._exit(code))
