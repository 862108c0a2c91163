"""One writer per run directory: a lock that a dead process loses by itself, on this machine and over NFS.

The kernel's lock on `RUN/lock` does most: it ends with its process, and NFS 4 carries it to other machines. Where a
file system has no locks, or keeps them to one machine, the file's content decides: its owner beats in it, and an
observer judges a beat only by whether it changes while it watches, so that clocks need not agree.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from amsd.errors import UsageError, option
from amsd.files import writing
from amsd.reading import parsed_object

NAME = "lock"
#: Seconds between two beats, and for how long a beat of another machine is watched.
BEAT = 3.0
WATCH = 10.0
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


@contextmanager
def locked(folder: Path, wait: float = 0.0) -> Iterator[None]:
    """Hold the lock of `folder` inside the block; wait for up to `wait` seconds for another process to let go.

    Raises:
        UsageError: another process holds it; that process is named.
        OSError: the folder cannot be written to.
    """
    deadline = time.monotonic() + wait
    while True:
        try:
            held = _take(folder / NAME)
            break
        except _HeldError as error:
            if time.monotonic() >= deadline:
                raise UsageError(
                    f"{folder} is in use by {error}. Only one process at a time may write to a run; end that one "
                    f"first, or choose another {option('output')}."
                ) from None
        time.sleep(min(1.0, max(0.05, wait / 10)))
    end = threading.Event()
    beating = threading.Thread(target=_beat, args=(held, end), name="amsd-lock", daemon=True)
    beating.start()
    try:
        yield
    finally:
        end.set()
        beating.join()
        _let_go(folder / NAME, held)


class _HeldError(Exception):
    """The lock is held; the text says by whom."""


def _take(path: Path) -> int:
    """Open and lock the file; returns its handle."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            kernel = _lock(handle, path)
            if _same_file(handle, path):
                _require_left(path, kernel)
                with writing(path):
                    _write(handle, 0)
                return handle
            os.close(handle)  # its owner has just let go and deleted it
        except BaseException:
            os.close(handle)
            raise


def _lock(handle: int, path: Path) -> bool:
    """Whether the kernel's lock is ours now; False where this file system has none."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _HeldError(_described(_read(path))) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


def _same_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _require_left(path: Path, kernel: bool) -> None:
    """Check that the owner that the content names is gone.

    Raises:
        _HeldError: it is alive.
    """
    owner = _read(path)
    if not owner:
        return
    here = owner.get("host") == socket.gethostname()
    if here and (kernel or not _alive(owner)):  # the kernel knows the processes of its own machine
        return
    if here:
        raise _HeldError(_described(owner))
    deadline = time.monotonic() + WATCH
    while time.monotonic() < deadline:
        time.sleep(min(0.2, BEAT / 3))
        if _read(path) != owner:
            raise _HeldError(_described(owner))


def _alive(owner: dict[str, Any]) -> bool:
    import psutil

    try:
        now = _born(int(owner["pid"]))
        if "ticks" in owner and "ticks" in now:
            return bool(now["ticks"] == owner["ticks"])
        return abs(now["started"] - float(owner["started"])) < 2
    except (psutil.Error, KeyError, TypeError, ValueError, OverflowError):
        return False


def _born(process: int) -> dict[str, float]:
    """When a process began: by the clock, and on Linux in ticks since the machine's start, which no clock moves.

    Raises:
        psutil.NoSuchProcess: there is none.
    """
    import psutil

    born = {"started": psutil.Process(process).create_time()}
    with suppress(OSError, ValueError, IndexError):
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
        born["ticks"] = int(stat.rpartition(")")[2].split()[19])  # field 22; the name before may hold anything
    return born


def _read(path: Path) -> dict[str, Any]:
    """The content, opened anew, because NFS refreshes a file when it is opened; empty if there is no whole one."""
    try:
        return parsed_object(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError):
        return {}


def _write(handle: int, beat: int) -> None:
    content = {"host": socket.gethostname(), "pid": os.getpid(), **_born(os.getpid()), "beat": beat}
    data = json.dumps(content).encode()
    os.pwrite(handle, data, 0)
    os.ftruncate(handle, len(data))


def _beat(handle: int, end: threading.Event) -> None:
    beat = 0
    while not end.wait(BEAT):
        beat += 1
        try:
            _write(handle, beat)
        except OSError:  # a full disk stops the training elsewhere, with a message
            continue


def _let_go(path: Path, handle: int) -> None:
    try:
        if _same_file(handle, path):
            path.unlink()
    except OSError:  # read-only by now: the kernel's lock ends with the handle, and the beat stands still
        pass
    finally:
        os.close(handle)


def _described(owner: dict[str, Any]) -> str:
    if not owner:
        return "another process"
    return f"process {owner.get('pid')} on {owner.get('host')}"
