"""Whether results can be written where the user wants them, asked before anything is computed."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import typer

from amsd.errors import UsageError
from amsd.occupied import require_lasting


def _place(value: str) -> str:
    """What names a file, a folder, a recipe or a model on the command line; parser of all such arguments.

    Raises:
        BadParameter: it is empty, as an unset shell variable is.
    """
    if not value.strip():
        raise typer.BadParameter(f"{value!r} names nothing. Is a shell variable unset? `.` is the current folder.")
    return value


def _path(value: str) -> Path:
    """A path that may be created.

    Raises:
        BadParameter: it is empty, or no terminal shows it as it is.
    """
    if any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in _place(value)):
        raise typer.BadParameter(f"{value!r} holds a line break, a tab or another control character. Use another name.")
    return Path(value)


def path_option(*names: str, help: str, metavar: str = "PATH") -> Any:  # noqa: A002  # as Typer calls it
    """An option of a command that names a file or a folder."""
    return typer.Option(*names, parser=_path, metavar=metavar, help=help)


def place_option(*names: str, help: str, metavar: str, **given: Any) -> Any:  # noqa: A002  # as Typer calls it
    """An option that names something by a path, a name or a URL."""
    return typer.Option(*names, parser=_place, metavar=metavar, help=help, **given)


def place_argument(metavar: str, help: str) -> Any:  # noqa: A002  # as Typer calls it
    """An argument that names something by a path, a name or a URL."""
    return typer.Argument(parser=_place, metavar=metavar, help=help)


def as_argument(path: Path) -> str:
    """A path as it is typed after a command: quoted, and no option where its name begins with a dash."""
    return shlex.quote(f"./{path}" if str(path).startswith("-") else str(path))


def require_file(path: Path | None, option: str) -> None:
    """Check that a file can be written there, if one is wanted.

    Raises:
        UsageError: its folder is none, or permission is missing.
    """
    if path is not None:
        require_folder(path.parent, option)
        require_lasting(path, option)


def require_folder(path: Path, option: str, way_out: str = "choose another folder.") -> None:
    """Check that `path` is a folder that can be written to, or can become one; nothing is created.

    `option` names it; `way_out` says what to do where permission is missing.

    Raises:
        UsageError: it is a file, lies under one, or permission is missing.
    """
    dead = next((each for each in (path.absolute(), *path.absolute().parents) if each.is_symlink()), path)
    if dead.is_symlink() and not dead.exists():
        raise UsageError(f"{option} {path}: {dead} is a link that leads nowhere; choose another folder.")
    existing = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    if not existing.is_dir():
        raise UsageError(f"{option} {path}: {existing} is a file; choose a folder.")
    effective = os.access in os.supports_effective_ids
    if not os.access(existing, os.W_OK | os.X_OK, effective_ids=effective):
        raise UsageError(f"{option} {path}: {existing} cannot be written to; {way_out}")


def warn(notices: Iterable[str]) -> None:
    """Say on standard error what a user should know."""
    for notice in notices:
        typer.echo(f"Warning: {notice}", err=True)


def hanging(head: str, text: str) -> str:
    """A head and its text, wrapped under itself on a terminal; in a pipe one line, for other programs."""
    if not sys.stdout.isatty():
        return head + text
    return textwrap.fill(head + text, shutil.get_terminal_size().columns, subsequent_indent=" " * len(head))
