"""Whether results can be written where the user wants them, asked before anything is computed."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from amsd.errors import UsageError


def as_argument(path: Path) -> str:
    """A path as it is typed after a command: quoted, and no option where its name begins with a dash."""
    return shlex.quote(f"./{path}" if str(path).startswith("-") else str(path))


def require_folder(path: Path, option: str) -> None:
    """Check that `path` is a folder that can be written to, or can become one; nothing is created.

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
        raise UsageError(f"{option} {path}: {existing} cannot be written to; choose another folder.")
