"""Recipes and sweeps that ship with amsd, found by name in a checkout or in the installed wheel."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from amsd.errors import UsageError

Kind = Literal["recipes", "sweeps"]


def folder(kind: Kind) -> Path:
    """Where the shipped files of this kind lie."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "data" / kind
    return installed if installed.is_dir() else package.parent / kind


def names(kind: Kind) -> list[str]:
    """Names of the shipped files, sorted."""
    return sorted(path.stem for path in folder(kind).glob("*.toml"))


def find(source: str, kind: Kind) -> Path:
    """The file that `source` means: a path, or the name of a shipped file.

    Raises:
        UsageError: neither exists; the nearest shipped name is given.
    """
    path = Path(source)
    shipped = folder(kind) / f"{source}.toml"
    try:
        if path.is_file():
            return path
        if "/" not in source and shipped.is_file():
            return shipped
        if source and path.is_dir():
            of_run = path / "recipe.toml"
            named = f"its recipe is {of_run}" if of_run.is_file() else "name a file"
            raise UsageError(f"{source}: is a folder; {named}.")
    except OSError as error:  # such as a name that is too long
        raise UsageError(f"{source[:200]}: cannot be read: {error.strerror or error}") from None
    known = names(kind)
    close = get_close_matches(path.stem, known, n=1, cutoff=0.5)
    hint = f"Did you mean {close[0]!r}?" if close else f"Shipped {kind}: {', '.join(known) or 'none'}."
    raise UsageError(f"{source[:200]}: no such file, and no shipped {kind.rstrip('s')} has this name. {hint}")
