"""Folders that belong to something already: whose own files a new output inside would be mixed up with, or lost."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

from amsd.errors import UsageError

_CHECKPOINT = re.compile(r"step-\d+")


def require_place(path: Path, given: str, own: Literal["run", "sweep"], within_sweep: bool = False) -> None:
    """Check that a new run or sweep does not begin inside another one, a checkpoint or an exported pipeline.

    Args:
        path: its folder.
        given: the option that names it, for the message.
        own: what it is; a folder that is one already goes on.
        within_sweep: whether it is a trial, which lies in its sweep's folder.

    Raises:
        UsageError: it does; what it lies in is named.
    """
    here = Path(os.path.realpath(path))
    if _kind(here) == own:
        return
    for folder in (here, *here.parents):
        kind = _kind(folder)
        if kind is not None and not (within_sweep and kind == "sweep"):
            _refuse(path, given, kind, folder)


def require_lasting(path: Path, given: str) -> None:
    """Check that a result is not written into a checkpoint, which training deletes when newer ones are there.

    Raises:
        UsageError: it is; the checkpoint is named.
    """
    here = Path(os.path.realpath(path))
    for folder in (here, *here.parents):
        if _kind(folder) == "checkpoint":
            _refuse(path, given, "checkpoint", folder)


def _refuse(path: Path, given: str, kind: str, folder: Path) -> None:
    where = "is" if Path(os.path.realpath(path)) == folder else "lies in"
    raise UsageError(f"{given} {path}: {where} the {kind} {folder}, whose files amsd looks after. Choose a folder "
                     "outside of it.")  # fmt: skip


def _kind(folder: Path) -> str | None:
    """What a folder is to amsd; None if it is nobody's."""

    def has(*names: str) -> bool:
        return all(os.path.exists(folder / name) for name in names)  # noqa: PTH110  # no error where access is denied

    if _CHECKPOINT.fullmatch(folder.name) and folder.parent.name == "checkpoints" and has("."):
        return "checkpoint"
    if has("sweep.json", "plan.json"):
        return "sweep"
    if has("model_index.json", "recipe.toml"):
        return "exported pipeline"
    return "run" if has("recipe.toml", "metrics.jsonl") or has("recipe.toml", "checkpoints") else None
