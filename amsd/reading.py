"""Files that came from elsewhere: whether one is whole, and one message that names it where it cannot be read."""

from __future__ import annotations

import codecs
import errno
import json
import math
import re
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from amsd.errors import AmsdError, UsageError

_LFS = b"version https://git-lfs.github.com/spec/"
_LONGEST_REASON = 300
WRAPPERS = ("_orig_mod.", "module.")
"""What `torch.compile` and data parallelism put before the names of a network's parameters."""
_LISTED = 3
#: How torch and its libraries say that memory is short, or that no machine has so much.
_SHORTAGE = re.compile(
    "out of memory|can't allocate memory|_ALLOC_FAILED|DefaultCPUAllocator|Storage size calculation overflowed|"
    "Invalid buffer size|std::bad_alloc|could not create a primitive|can't start new thread",
    re.IGNORECASE,
)


@contextmanager
def reading(what: str, place: Path | str, way_out: str = "") -> Iterator[None]:
    """Inside, whatever a library raises while it reads `place` becomes one message.

    Readers of foreign files raise anything (`KeyError`, `TypeError`, errors of their own), so every `Exception` but a
    lack of memory counts; the cause is kept for `--debug`.

    Raises:
        UsageError: naming `what`, the place, the library's reason and the way out.
    """
    try:
        yield
    except AmsdError:
        raise
    except Exception as error:
        if is_shortage(error):
            raise
        raise UsageError(f"{what}: {place} cannot be read: {reason_of(error)}{way_out and f' {way_out}'}") from error


def is_shortage(error: BaseException) -> bool:
    """Whether an error says that memory was short (torch's own are known by name and text: it is not imported here)."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and _SHORTAGE.search(str(error)) is not None


def reason_of(error: BaseException) -> str:
    """A library's exception in one line, ending with a stop; the line of code that raised it where it has no text."""
    if type(error).__name__ == "UnpicklingError":  # torch's own text advises to run what is in the file
        return "it holds more than tensors, which could run code, or is damaged."
    text = " ".join(str(error).split()) or _raised_at(error)
    text = text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON].rstrip()} ..."
    named = text if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {text}"
    return named if named.endswith((".", "!", "?", "...")) else f"{named}."


def _raised_at(error: BaseException) -> str:
    """Such as `at "assert sum(dims) == width"`: a bare assertion says no more."""
    from traceback import extract_tb

    places = extract_tb(error.__traceback__)
    line = places[-1].line if places else None
    return f'at "{line}"' if line else "no reason given"


def parsed(text: str | bytes, infinite: bool = False) -> Any:
    """JSON that came from elsewhere; its numbers are finite, as in all that amsd writes, or `infinite` at most.

    Raises:
        ValueError: it is none, whatever is wrong with it (of deep nesting Python says `RecursionError`).
    """
    number = _number if infinite else _finite
    try:
        return json.loads(text, parse_float=number, parse_constant=number)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _number(text: str) -> float:
    value = float(text)
    if math.isnan(value):
        raise ValueError(f"{text[:30]} is not a number")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:30]} is not a finite number")
    return value


def parsed_object(text: str | bytes) -> dict[str, Any]:
    """A JSON object that came from elsewhere.

    Raises:
        ValueError: it is none.
    """
    found = parsed(text)
    if not isinstance(found, dict):
        raise ValueError(f"it holds a JSON {type(found).__name__} where an object should be")
    return found


def read_json(path: Path, what: str, infinite: bool = False) -> dict[str, Any]:
    """A JSON object from a file, whose numbers may be `infinite`.

    Raises:
        UsageError: the file is absent, not JSON, or holds something else than an object.
    """
    require_whole(path, what)
    try:
        content = path.read_bytes()
        if content.startswith(codecs.BOM_UTF8):
            raise UsageError(f"{what}: {path} begins with a byte order mark. Save it as UTF-8 without one.")
        found = parsed(content.decode("utf-8"), infinite)
    except (OSError, ValueError) as error:
        raise UsageError(f"{what}: {path} is not valid JSON ({error}). Download the file again.") from error
    if not isinstance(found, dict):
        raise UsageError(f"{what}: {path} holds a JSON {type(found).__name__} where an object should be.")
    return found


def is_safetensors(path: Path) -> bool:
    """Whether a file's name says that it is of this format; some systems write suffixes in capitals."""
    return path.suffix.lower() == ".safetensors"


def require_whole(path: Path, what: str) -> None:
    """Look at a file's first bytes and its size, without reading it.

    Raises:
        UsageError: it is absent, empty, a git-lfs pointer, a web page, or a safetensors file that is cut off.
    """
    fault = _fault(path)
    if fault is not None:
        raise UsageError(f"{what}: {path} {fault}")


def _fault(path: Path) -> str | None:
    try:
        if not path.is_file():
            return "does not exist. The model is incomplete: download it again."
        size = path.stat().st_size
        with path.open("rb") as stream:
            start = stream.read(256)
    except OSError as error:
        return f"cannot be read: {error.strerror or error}. Make it readable for this user, or name another one."
    if not start:
        return "is empty. Download the file again."
    if (stand_in := _stand_in(start)) is not None:
        return stand_in
    if is_safetensors(path):
        return _cut_off(path, start, size)
    return None


def require_itself(path: Path, what: str) -> None:
    """Check that a file is not what a download puts in its place; of any format, also where it may be empty.

    Raises:
        UsageError: it is a git-lfs pointer or a web page.
    """
    with path.open("rb") as stream:
        fault = _stand_in(stream.read(256))
    if fault is not None:
        raise UsageError(f"{what}: {path} {fault}")


def _stand_in(start: bytes) -> str | None:
    if start.startswith(_LFS):
        return "is a git-lfs pointer, not the file itself: run `git lfs pull` in its repository, or download the file."
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "is a web page, not the file itself: the download needs a login, or its address is wrong."
    return None


def _cut_off(path: Path, start: bytes, size: int) -> str | None:
    """A safetensors file says in its header where its data ends."""
    if len(start) < 8:
        return "cannot be read as a checkpoint: it is too short for one. Download it again."
    (length,) = struct.unpack("<Q", start[:8])
    if length > size - 8:
        return "is cut off, or is not a safetensors file (its header does not fit into it). Download it again."
    with path.open("rb") as stream:
        stream.seek(8)
        try:
            header = parsed_object(stream.read(length))
            ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
            expected = 8 + length + max(ends, default=0)
        except (ValueError, KeyError, TypeError, AttributeError):
            return "is damaged (its header cannot be read). Download it again."
    if expected != size:
        return f"is cut off: it has {size:,} of {expected:,} bytes. Download it again."
    return None


def audit(problems: Mapping[str, Collection[str]], what: str) -> None:
    """Check that a network and a file hold the same parameters; `problems` lists names by kind, such as `missing`.

    Raises:
        UsageError: there is a name under any kind; the first few of each are listed, with the way out.
    """
    found = {kind: sorted(names) for kind, names in problems.items() if names}
    if not found:
        return
    listed = "; ".join(
        f"{len(names)} {kind}: {', '.join(names[:_LISTED])}{' ...' if len(names) > _LISTED else ''}"
        for kind, names in found.items()
    )
    hint = wrapper_hint(name for kind in found.values() for name in kind)
    raise UsageError(
        f"{what}: the weights do not fit the network. Keys {listed}. "
        f"{hint or 'The file is incomplete, or belongs to another architecture than its configuration says.'}"
    )


def require_same(own: Mapping[str, Any], stored: Mapping[str, Any], what: str) -> None:
    """Check that two dictionaries of tensors have the same names and shapes.

    Raises:
        UsageError: see `audit`.
    """
    common = own.keys() & stored.keys()
    problems = {
        "missing": own.keys() - stored.keys(),
        "left over": stored.keys() - own.keys(),
        "of another shape": {key for key in common if own[key].shape != stored[key].shape},
    }
    audit(problems, what)


def wrapper_hint(names: Iterable[str]) -> str:
    """What to do where names of parameters carry a wrapper's prefix; empty where none does."""
    for name in names:
        for wrapper in WRAPPERS:
            if f".{wrapper}" in f".{name}":
                return (
                    f"The file was saved from a wrapped network (torch.compile, data parallel), so its names carry "
                    f'{wrapper!r}. Save the network inside instead, or rename once: python -c "from safetensors.torch '
                    f"import load_file, save_file; s = load_file('FILE'); save_file({{k.replace('{wrapper}', ''): v "
                    "for k, v in s.items()}, 'FILE', metadata={'format': 'pt'})\""
                )
    return ""
