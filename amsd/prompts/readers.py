"""One reader for each file format; every complaint names the file and the line (or entry)."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from amsd.prompts.prompt_set import PromptError

#: Names of the key or column that holds the prompt, in order of preference.
KEYS = ("text", "prompt")


def read_file(path: Path) -> list[str]:
    """Entries of a prompt file as they stand there, empty ones included.

    Raises:
        PromptError: the file is malformed, unreadable or of an unknown format.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise PromptError(f"{path}: unknown format {path.suffix!r}; prompt files are {', '.join(READERS)}.")
    try:
        return reader(path)
    except OSError as error:
        raise PromptError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise PromptError(f"{path}, line {line}: is not UTF-8 text.") from None


def read_text(path: Path) -> list[str]:
    """One prompt a line."""
    lines = _lines(path)
    for number, line in enumerate(lines, start=1):
        if "\0" in line:
            raise PromptError(f"{path}, line {number}: holds a NUL character, so it is not a text file.")
    return lines


def read_json(path: Path) -> list[str]:
    """A list of strings, or of objects with `text` or `prompt`."""
    data = _parse(_decoded(path), str(path), first_line=1)
    if not isinstance(data, list):
        raise PromptError(f"{path}: must be a list of prompts, but is {_kind(data)}.")
    return [_prompt(entry, f"{path}, entry {number}") for number, entry in enumerate(data, start=1)]


def read_jsonl(path: Path) -> list[str]:
    """One string, or object with `text` or `prompt`, a line; blank lines are skipped."""
    numbered = [(number, line) for number, line in enumerate(_lines(path), start=1) if line.strip()]
    return [_prompt(_parse(line, str(path), number), f"{path}, line {number}") for number, line in numbered]


def read_csv(path: Path) -> list[str]:
    """A table with a header line and a column `text` or `prompt`."""
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, strict=True)
        try:
            header = next(reader, None)
            if header is None:
                raise PromptError(f"{path}: is empty; the first line names the columns.")
            column = find_column([name.strip() for name in header], str(path))
            return [_field(row, header, column, f"{path}, line {reader.line_num}") for row in reader if row]
        except csv.Error as error:
            raise PromptError(f"{path}, line {reader.line_num}: is not valid CSV: {error}") from None


def read_parquet(path: Path) -> list[str]:
    """A table with a column `text` or `prompt`.

    Raises:
        PromptError: see `read_file`; also if pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise PromptError(f"{path}: Parquet needs pyarrow; install it with: pip install 'amsd[data]'") from None
    try:
        names = pyarrow.parquet.read_schema(path).names
        column = names[find_column(names, str(path))]
        values = pyarrow.parquet.read_table(path, columns=[column]).column(column).to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise PromptError(f"{path}: is not a Parquet file: {error}") from None
    return [_string(value, f"{path}, row {number}") for number, value in enumerate(values, start=1)]


READERS: Mapping[str, Callable[[Path], list[str]]] = {
    ".txt": read_text,
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".csv": read_csv,
    ".parquet": read_parquet,
}


def find_column(names: Iterable[str], where: str) -> int:
    """Position of the column that holds the prompts.

    Raises:
        PromptError: there is none.
    """
    names = list(names)
    for key in KEYS:
        if key in names:
            return names.index(key)
    raise PromptError(f"{where}: needs a column named {' or '.join(map(repr, KEYS))}, but has {', '.join(names)}.")


def _field(row: list[str], header: list[str], column: int, where: str) -> str:
    if len(row) != len(header):
        raise PromptError(
            f"{where}: has {len(row)} fields, but the header names {len(header)}; "
            "put prompts that contain commas in double quotes."
        )
    return row[column]


def _prompt(entry: Any, where: str) -> str:
    if isinstance(entry, dict):
        key = next((key for key in KEYS if key in entry), None)
        if key is None:
            found = ", ".join(entry) or "no keys"
            raise PromptError(f"{where}: the object needs {' or '.join(map(repr, KEYS))}, but has {found}.")
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


def _decoded(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig")


def _lines(path: Path) -> list[str]:
    """Lines as an editor counts them (`str.splitlines` would also break at form feeds and the like)."""
    lines = _decoded(path).split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", type(None): "null"}
    return names.get(type(value), f"the number {value}")
