"""Writing files so that a reader, or a crash, never sees half of one."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from amsd.errors import RunError, UsageError, option

Writes = Callable[[Path], None]
"""Writes into a folder what was taken when it was made: nothing that happened since is in it."""


def write_nothing(folder: Path) -> None:
    """Another process writes it."""


class DiskError(RunError, OSError):
    """Something cannot be written; the text gives the path, the reason and what to do."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name `path` and say what to do if what the body writes there does not fit or is refused.

    Raises:
        DiskError: in place of the `OSError` of Python or the error of safetensors.
    """
    try:
        yield
    except DiskError:
        raise
    except OSError as error:
        raise DiskError(f"{path} cannot be written: {error.strerror or error}. {_advice(error.errno, path)}") from error
    except Exception as error:
        found = _OS_ERROR.search(str(error))
        if type(error).__module__.partition(".")[0] != "safetensors" or found is None:
            raise
        number = int(found[1])
        raise DiskError(f"{path} cannot be written: {os.strerror(number)}. {_advice(number, path)}") from error


#: How Rust's libraries give the error of the operating system.
_OS_ERROR = re.compile(r"os error (\d+)")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)


def refusal(error: OSError) -> str | None:
    """What a full or read-only disk says where nobody has named the path; None of any other error."""
    place = (
        os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else "A file, or the standard output,"
    )
    if error.errno in (*_FULL, errno.EROFS):
        return f"{place} cannot be written: {error.strerror}. {_advice(error.errno, Path(place))}"
    return None


def _advice(number: int | None, path: Path) -> str:
    of_run, resume = _is_of_run(path), option("resume", "resume=True")
    after = f" What was written before is whole: {resume} goes on from the newest checkpoint." if of_run else ""
    if number in _FULL:
        less = " (a lower training.keep needs less), or move the folder" if of_run else ", or choose another place"
        return f"Make room there{less}.{after}"
    if number in _REFUSED:
        return f"Make the folder writable, or choose another one.{after}"
    return after.strip() or "Check the disk, or choose another place."


def _is_of_run(path: Path) -> bool:
    """Whether a training writes there, rather than an export, a report or a picture."""
    inside = any(part == "checkpoints" or part.startswith("step-") for part in path.parts)
    beside = (path.parent / "metrics.jsonl").is_file() and path.suffix != ".html"
    return inside or path.name == "metrics.jsonl" or beside


def write_file(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Replace `path` by what `fill` writes, atomically (written aside, fsynced, renamed).

    Raises:
        DiskError: it cannot be written.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with aside.open("wb") as stream:
                fill(stream)
                stream.flush()
                os.fsync(stream.fileno())
            aside.replace(path)
        except BaseException:
            with suppress(OSError):
                aside.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in UTF-8, atomically.

    Raises:
        DiskError: it cannot be written.
    """
    content = text.encode("utf-8")
    write_file(path, lambda stream: stream.write(content))


def move_file(source: Path, target: Path) -> None:
    """Move a file to `target`, which it replaces atomically, also where that lies on another disk.

    Raises:
        DiskError: it cannot be written there.
    """
    with writing(target):
        try:
            source.replace(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            aside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
            try:
                shutil.copy2(source, aside)
                _sync_file(aside)
                aside.replace(target)
            finally:
                aside.unlink(missing_ok=True)
            source.unlink()


_LEFT = re.compile(r"\..+\.\d+\.tmp|\.parts-\d+|\.withdrawn-\d+")


def clear_unfinished(folder: Path) -> None:
    """Delete what killed processes have begun to write below `folder`; nobody may be writing there."""
    for parent, folders, files in os.walk(folder):
        for name in [name for name in folders if _LEFT.fullmatch(name)]:
            shutil.rmtree(Path(parent) / name, ignore_errors=True)
            folders.remove(name)
        for name in [name for name in files if _LEFT.fullmatch(name)]:
            (Path(parent) / name).unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    """Replace `path` by `data` as JSON, atomically. NaN and infinity are refused (`ValueError`)."""
    write_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


def require_vacant(path: Path) -> None:
    """Check that the folder `path` can be created without losing anything.

    Raises:
        UsageError: it is a file, or a folder with something in it.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"{path}: already exists and is not an empty folder.")


def write_folder(path: Path, fill: Callable[[Path], None], replace: bool = True) -> None:
    """Create the folder `path` complete or not at all: `fill` writes into a folder aside, which is then renamed.

    Without `replace` a folder that somebody else has filled meanwhile stays as it is.

    Raises:
        DiskError: it cannot be written.
        UsageError: something is there and may not be replaced.
    """
    with writing(path):
        _write_folder(path, fill, replace)


def _write_folder(path: Path, fill: Callable[[Path], None], replace: bool) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    _clear_left(path)
    aside.mkdir(parents=True)
    try:
        fill(aside)
        allow_as_usual(aside)
        for file in sorted(aside.rglob("*")):
            sync_folder(file) if file.is_dir() else _sync_file(file)
        sync_folder(aside)
        if replace and path.exists():  # left by an earlier, damaged attempt
            shutil.rmtree(path)
        try:
            aside.replace(path)
        except OSError:
            require_vacant(path)
            raise
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    sync_folder(path.parent)


def allow_as_usual(folder: Path) -> None:
    """Let others read the files below `folder` as the umask says: safetensors writes them for their owner alone.

    The folder, which was made with that umask, tells it: to ask for it would mean to change it for every thread.
    """
    usual = folder.stat().st_mode & 0o666
    for file in folder.rglob("*"):
        mode = file.stat().st_mode
        if file.is_file() and mode & 0o666 != usual:
            file.chmod((mode & 0o777) | usual)


def _clear_left(path: Path) -> None:
    """Delete what this process, or killed ones of this machine, have begun of the folder `path`."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        number = left.name.removeprefix(f".{path.name}.").removesuffix(".tmp")
        if number.isascii() and number.isdigit() and not (int(number) != os.getpid() and _alive(int(number))):
            shutil.rmtree(left, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # somebody else's
        return True
    return True


def sha256(path: Path) -> str:
    """Hash of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync_folder(path: Path) -> None:
    """Make renames in a folder durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_file(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
