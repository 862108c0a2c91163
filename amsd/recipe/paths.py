"""Paths in a recipe: found from the working directory, else from the recipe's folder, and absolute from then on.

A run's recipe says where the run was when it was written (`origin`). Where both were moved together, what lies at no
recorded path any more is found at its place relative to the run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

#: Prefixes of names that are no paths.
_NAMED = ("embedded:", "hub:")
PYTHON = "python:"


def anchor(tree: dict[str, Any], folder: Path) -> None:
    """Make every path of a recipe's plain data absolute that leads somewhere; `folder` is the recipe's own.

    What leads nowhere stays as it is written: it may be a hub id, and messages show what the user wrote.
    """
    origin = tree.get("origin")
    if folder.parent.name == "checkpoints":  # a checkpoint has a copy of its run's recipe
        folder = folder.parent.parent

    def resolved(value: Any) -> Any:
        return _resolved(value, folder, origin) if isinstance(value, str) else value

    model, prompts = tree.get("model"), tree.get("prompts")
    if isinstance(model, dict):
        _replace(model, ("pretrained", "config", "start"), resolved)
    if isinstance(prompts, dict):
        _replace(prompts, ("train", "evaluation"), resolved)
    for options in _options(tree):
        _replace(options, tuple(options), lambda value: resolved(value) if _looks_like_path(value) else value)
    _anchor_code(tree, folder)


def code_files(tree: dict[str, Any]) -> Iterator[str]:
    """The Python files that scorers of a recipe's plain data name, as they are written."""
    for name in scorer_names(tree):
        file = name.removeprefix(PYTHON).rpartition(":")[0]
        if name.startswith(PYTHON) and file.endswith(".py"):
            yield file


def scorer_names(tree: dict[str, Any]) -> Iterator[str]:
    """Names of rewards and held-out metrics in a recipe's plain data."""
    rewards, evaluation = tree.get("reward"), tree.get("evaluation")
    for term in rewards if isinstance(rewards, list) else ():
        if isinstance(term, dict) and isinstance(term.get("name"), str):
            yield term["name"]
    metrics = evaluation.get("metrics") if isinstance(evaluation, dict) else None
    for name in metrics if isinstance(metrics, list) else ():
        if isinstance(name, str):
            yield name


def _anchor_code(tree: dict[str, Any], folder: Path) -> None:
    """Note where the files of `python:FILE.py:FUNCTION` lie: the name itself is that of a metric and stays."""
    known = tree.get("code")
    for file in dict.fromkeys(code_files(tree)):
        if isinstance(known, dict) and file in known:
            continue
        found = _resolved(file, folder, None)
        if Path(found).is_file():
            known = tree.setdefault("code", {})
            known[file] = {"path": found}


def _resolved(name: str, folder: Path, origin: Any) -> str:
    if not name or name.startswith(_NAMED) or "\0" in name:
        return name
    path = Path(os.path.expanduser(name))  # noqa: PTH111  # Path.expanduser raises for an unknown user
    places = [path, folder / path]
    if path.is_absolute() and isinstance(origin, str):
        places.append(folder / os.path.relpath(path, origin))
    for place in places:
        if _exists(place):
            return str(Path(os.path.abspath(place)))  # noqa: PTH100  # symbolic links stay what the user chose
    return name


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long is no path
        return False


def _looks_like_path(value: Any) -> bool:
    """Whether an option's text can be meant as a path: `vitb32` is a name even where a folder is called so."""
    return isinstance(value, str) and ("/" in value or os.sep in value or bool(Path(value).suffix))


def _options(tree: dict[str, Any]) -> Iterator[dict[str, Any]]:
    rewards, evaluation = tree.get("reward"), tree.get("evaluation")
    for term in rewards if isinstance(rewards, list) else ():
        if isinstance(term, dict) and isinstance(term.get("options"), dict):
            yield term["options"]
    named = evaluation.get("options") if isinstance(evaluation, dict) else None
    for options in named.values() if isinstance(named, dict) else ():
        if isinstance(options, dict):
            yield options


def _replace(table: dict[str, Any], keys: tuple[str, ...], change: Callable[[Any], Any]) -> None:
    for key in keys:
        if key in table:
            table[key] = change(table[key])
