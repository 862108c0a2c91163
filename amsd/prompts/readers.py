"""One reader for each file format; every complaint names the file and the line (or entry)."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from amsd.errors import UsageError
from amsd.prompts.prompt_set import PromptError
from amsd.reading import require_itself

_LOG = logging.getLogger(__name__)

#: Names of the key or column that holds the prompt, in order of preference; upper and lower case are alike.
KEYS = ("text", "prompt", "prompts", "caption", "captions")
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".7z")
_DELIMITERS = (",", ";", "\t", "|")
#: Nobody has a table of more bytes: a prompt file that has is another file.
LARGEST = 2**30


def read_file(path: Path, column: str | None = None) -> list[str]:
    """Entries of a prompt file as they stand there, empty ones included.

    `column` names the column, or the key of JSON objects; unset: the first of `KEYS` that is there.

    Raises:
        PromptError: the file is malformed, unreadable or of an unknown format.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        packed = " Unpack it first." if path.suffix.lower() in _PACKED else ""
        raise PromptError(f"{path}: unknown format {path.suffix!r}; prompt files are {', '.join(READERS)}.{packed}")
    try:
        if path.stat().st_size > LARGEST:
            raise PromptError(f"{path}: has {path.stat().st_size:,} bytes; a prompt file may have {LARGEST:,}.")
        require_itself(path, "prompts")
        return reader(path, column)
    except UsageError as error:
        raise error if isinstance(error, PromptError) else PromptError(str(error)) from None
    except OSError as error:
        raise PromptError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise PromptError(f"{path}, line {line}: is not UTF-8 text. Save the file as UTF-8.") from None


def read_text(path: Path, column: str | None = None) -> list[str]:
    """One prompt a line; a text file has no columns to choose from."""
    lines = _lines(path)
    for number, line in enumerate(lines, start=1):
        if "\0" in line:
            raise PromptError(f"{path}, line {number}: holds a NUL character, so it is not a text file.")
    return lines


def read_json(path: Path, column: str | None = None) -> list[str]:
    """A list of strings, or of objects with a key for the prompt."""
    data = _parse(_decoded(path), str(path), first_line=1)
    if not isinstance(data, list):
        raise PromptError(f"{path}: must be a list of prompts, but is {_kind(data)}.")
    return [_prompt(entry, f"{path}, entry {number}", column) for number, entry in enumerate(data, start=1)]


def read_jsonl(path: Path, column: str | None = None) -> list[str]:
    """One string, or object with a key for the prompt, a line; blank lines are skipped."""
    numbered = [(number, line) for number, line in enumerate(_lines(path), start=1) if line.strip()]
    return [_prompt(_parse(line, str(path), number), f"{path}, line {number}", column) for number, line in numbered]


def read_csv(path: Path, column: str | None = None) -> list[str]:
    """A table with a header line and a column of prompts.

    Spreadsheets of many countries write semicolons for commas, and other tools tabs: the header decides. Between tabs,
    quotes mean nothing where they do not come in pairs (many write none of theirs twice).
    """
    delimiter = _delimiter(path, column)
    try:
        return _table(path, column, delimiter=delimiter)
    except PromptError:
        if delimiter != "\t":
            raise
        return _table(path, column, delimiter=delimiter, quoting=csv.QUOTE_NONE)


def _delimiter(path: Path, column: str | None) -> str:
    """What divides a table's header into fields of which one holds prompts; the format's own where nothing does."""
    own = "\t" if path.suffix.lower() == ".tsv" else ","
    with path.open(encoding="utf-8-sig", newline="") as stream:
        header = stream.readline()
    for each in (own, *(other for other in _DELIMITERS if other != own)):
        names = [name.strip().strip('"') for name in header.split(each)]
        if len(names) > 1 and (column in names or any(name.lower() in KEYS for name in names)):
            return each
    return own


def _table(path: Path, wanted: str | None, **dialect: Any) -> list[str]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, strict=True, **dialect)
        try:
            header = next(reader, None)
            if header is None:
                raise PromptError(f"{path}: is empty; the first line names the columns.")
            if any("\0" in name for name in header):
                raise PromptError(f"{path}: holds NUL characters in its header. Save the file as UTF-8.")
            column = find_column([name.strip() for name in header], str(path), wanted)
            return [_field(row, header, column, f"{path}, line {reader.line_num}") for row in reader if row]
        except csv.Error as error:
            raise PromptError(f"{path}, line {reader.line_num}: is not valid CSV: {error}") from None


def read_parquet(path: Path, wanted: str | None = None) -> list[str]:
    """A table with a column of prompts.

    Raises:
        PromptError: see `read_file`; also if pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise PromptError(f"{path}: Parquet needs pyarrow; install it with: uv pip install 'amsd[data]'") from None
    try:
        names = pyarrow.parquet.read_schema(path).names
        column = names[find_column(names, str(path), wanted)]
        values = pyarrow.parquet.read_table(path, columns=[column]).column(column).to_pylist()
    except pyarrow.ArrowException as error:
        raise PromptError(f"{path}: is not a Parquet file: {error}") from None
    return [_string(value, f"{path}, row {number}") for number, value in enumerate(values, start=1)]


READERS: Mapping[str, Callable[[Path, str | None], list[str]]] = {
    ".txt": read_text,
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
}


def find_column(names: Iterable[str], where: str, wanted: str | None = None) -> int:
    """Position of the column that holds the prompts: the one that is `wanted`, else the first of `KEYS`.

    Raises:
        PromptError: there is none.
    """
    names = list(names)
    if wanted is not None:
        if wanted not in names:
            raise PromptError(f"{where}: has no column {wanted!r} (prompts.column); it has {_shown(names)}.")
        return names.index(wanted)
    lower = [name.strip().lower() for name in names]
    found = [index for key in KEYS for index, name in enumerate(lower) if name == key]
    if found:
        if len(found) > 1:
            _say_choice(where.partition(", entry ")[0].partition(", line ")[0], tuple(names[index] for index in found))
        return found[0]
    raise PromptError(
        f"{where}: has no column named {', '.join(map(repr, KEYS))}, but {_shown(names)}. "
        "Say which one holds the prompts: prompts.column."
    )


@cache
def _say_choice(where: str, names: tuple[str, ...]) -> None:
    """Say once which of several columns is read."""
    others = ", ".join(map(repr, names[1:]))
    _LOG.warning(
        "%s: amsd reads the column %r; %s may hold prompts too. Set prompts.column to choose.", where, names[0], others
    )


def _shown(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:20])) or "none"
    return shown if len(shown) <= 300 else f"{shown[:297]}..."


def _field(row: list[str], header: list[str], column: int, where: str) -> str:
    if len(row) != len(header):
        raise PromptError(
            f"{where}: has {len(row)} fields, but the header names {len(header)}; "
            "put prompts that contain commas in double quotes."
        )
    return row[column]


def _prompt(entry: Any, where: str, column: str | None) -> str:
    if isinstance(entry, dict):
        key = list(entry)[find_column(entry, where, column)]
        return _string(entry[key], f"{where}, {key!r}")
    return _string(entry, where)


def _string(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise PromptError(f"{where}: a prompt must be a string, but is {_kind(value)}.")
    return value


def _parse(text: str, path: str, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise PromptError(f"{path}, line {line}: is not valid JSON: {error.msg} (column {error.colno}).") from None
    except RecursionError:
        raise PromptError(f"{path}, line {first_line}: is nested too deeply to be prompts.") from None
    except ValueError as error:  # a number of thousands of digits
        raise PromptError(f"{path}, line {first_line}: cannot be read: {error}") from None


def _decoded(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig")


def _lines(path: Path) -> list[str]:
    """Lines as an editor counts them (`str.splitlines` would also break at form feeds and the like)."""
    lines = _decoded(path).split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def _kind(value: Any) -> str:
    names = {
        dict: "an object", list: "a list", str: "a string", bool: "a truth value", type(None): "null", bytes: "bytes",
    }  # fmt: skip
    return names.get(type(value), f"the number {value!r:.30}")
