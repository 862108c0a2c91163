"""Where W&B puts files: into the run's folder or WANDB_DIR, and what it keeps for itself into the user's home."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def files_of_a_run(run: Path) -> str:
    """The folder for the files of a run's trackers."""
    return str(run) if refused_folder() else os.environ.get("WANDB_DIR") or str(run)


def refused_folder() -> str:
    """Why WANDB_DIR cannot hold the files of a run, which W&B would then put into the system's temporary folder."""
    named = os.environ.get("WANDB_DIR", "")
    reason = _refusal(Path(named)) if named else ""
    return reason and f"WANDB_DIR = {named!r} cannot be written to ({reason})"


def settle(run: Path) -> str:
    """Where the user's home takes no files, give W&B a place in the run for what it stages, caches and logs.

    Without one it cannot write tables, and stops. Returns what to say of it, or an empty text.
    """
    from wandb import env

    homes = {"WANDB_DATA_DIR": Path(env.get_data_dir()), "WANDB_CACHE_DIR": Path(env.get_cache_dir())}
    refused = {name: home for name, home in homes.items() if name not in os.environ and _refusal(home)}
    if not refused:
        return ""
    place = run.absolute() / "wandb" / "home"
    os.environ.update(dict.fromkeys(refused, str(place)))
    home, names = next(iter(refused.values())), " and ".join(refused)
    return f"{home} cannot be written to: what W&B keeps there goes to {place} ({names} can name another place)."


def _refusal(folder: Path) -> str:
    """Why this user cannot write into a folder, which is made as W&B would make it; empty where that is possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return error.strerror or str(error)
