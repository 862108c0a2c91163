"""Weights of rewards: found on disk or on the hub, checked, loaded without pickle, and accounted for key by key.

A file is named by a path or as `hub:OWNER/REPOSITORY/FILE[@REVISION]`; a model folder by a path or as OWNER/REPOSITORY.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn

from amsd.errors import UsageError
from amsd.files import sha256 as file_hash
from amsd.hub import PREFIX as HUB
from amsd.hub import Repository, parse_file
from amsd.reading import is_safetensors, reason_of, require_same, require_whole


def find_file(source: str, what: str, sha256: str | None = None) -> Path:
    """The file that `source` names, downloaded if it has to be.

    Args:
        source: path, or `hub:OWNER/REPOSITORY/FILE[@REVISION]`.
        what: whose file it is, for messages, such as "reward 'imagereward', option checkpoint".
        sha256: expected hash of the file, in hexadecimal.

    Raises:
        UsageError: the file is absent, unreachable or has another hash; the text says what to do.
    """
    if source.startswith(HUB):
        repository, name = parse_file(source)
        path = repository.file([name], what, _way_out(repository, [name]))
    else:
        path = Path(source).expanduser()
        if not path.is_file():
            raise UsageError(
                f"{what} = {source!r}: no such file. A file on the hub is written {HUB}OWNER/REPOSITORY/FILE."
            )
    if sha256 is not None and (found := file_hash(path)) != sha256.lower():
        raise UsageError(
            f"{what} = {source!r}: its sha256 is {found}, not {sha256}. The file is damaged, or it is a different one."
        )
    return path


def find_folder(
    source: str,
    what: str,
    needed: Sequence[Sequence[str]],
    optional: Sequence[str] = (),
    revision: str | None = None,
) -> Path:
    """The folder that holds a model or a tokenizer, downloaded if it has to be.

    Args:
        source: local folder, or OWNER/REPOSITORY on the hub.
        what: whose folder it is, for messages.
        needed: of each group of file names, the first that exists is needed.
        optional: file names that are taken along if they exist.
        revision: git revision on the hub.

    Raises:
        UsageError: the folder or one of its files is absent or unreachable; the text says what to do.
    """
    folder = Path(source).expanduser()
    if not source.strip():
        raise UsageError(f"{what} = {source!r} names nothing. Leave the option out to keep its default.")
    if folder.is_dir():
        for group in needed:
            if not any((folder / name).is_file() for name in group):
                raise UsageError(f"{what} = {source!r}: the folder has no {' or '.join(group)}.")
        return folder
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise UsageError(f"{what} = {source!r}: no such folder. A repository on the hub is written OWNER/REPOSITORY.")
    repository = Repository(source, revision)
    complete = all(any(repository.cached(name, what) for name in group) for group in needed)
    way_out = _way_out(repository, [group[0] for group in needed] + list(optional))
    found = [repository.file(group, what, way_out) for group in needed]
    if not complete:
        for name in optional:
            repository.downloaded(name, what, way_out)
    return found[0].parent


def load_tensors(path: Path, what: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint: safetensors, or a torch file read with `weights_only=True`.

    Raises:
        UsageError: the file is damaged or holds something else than named tensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    require_whole(path, what)
    try:
        if is_safetensors(path):
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise UsageError(
            f"{what}: {path} cannot be read as a checkpoint without running code from it: {reason_of(error)}"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UsageError(f"{what}: {path} does not hold a dictionary of tensors; found {type(content).__name__}")
    return dict(state)


def fill(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Copy `state` into `module`; every key of either must be in the other, with the same shape.

    Raises:
        UsageError: keys are left over or missing, or shapes differ; they are listed.
    """
    require_same(module.state_dict(), state, what)
    module.load_state_dict(state)


def _way_out(repository: Repository, names: Sequence[str]) -> str:
    """What to do without network; `names` are all files that are to be downloaded by hand."""
    return (
        f"Download it once while online (`hf download {repository.name} {' '.join(names)}`), "
        "or give a local path in the options of the recipe."
    )
