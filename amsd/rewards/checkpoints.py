"""Weights of rewards: found on disk or on the hub, checked, loaded without pickle, and accounted for key by key.

A file is named by a path or as `hub:OWNER/REPOSITORY/FILE[@REVISION]`; a model folder by a path or as OWNER/REPOSITORY.
What the hub's cache holds is used without any request. Otherwise one short probe decides whether there is a network at
all, where the hub's own client would retry for most of a minute.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import torch
from torch import Tensor, nn

from amsd.errors import UsageError
from amsd.files import sha256 as file_hash
from amsd.reading import require_same, require_whole

HUB = "hub:"
_PROBE_SECONDS = 5.0


@dataclass(frozen=True)
class HubFile:
    """One file of a hub repository."""

    repository: str
    name: str
    revision: str | None = None

    @classmethod
    def parse(cls, source: str) -> HubFile:
        """Read `hub:OWNER/REPOSITORY/FILE[@REVISION]`.

        Raises:
            UsageError: it has another form.
        """
        path, _, revision = source.removeprefix(HUB).partition("@")
        parts = path.split("/", 2)
        if len(parts) < 3 or not all(parts):
            raise UsageError(
                f"{source!r} does not name a file on the hub; expected {HUB}OWNER/REPOSITORY/FILE[@REVISION]"
            )
        return cls("/".join(parts[:2]), parts[2], revision or None)


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
        wanted = HubFile.parse(source)
        path = _one_of(wanted.repository, (wanted.name,), wanted.revision, what)
    else:
        path = Path(source).expanduser()
        if not path.is_file():
            raise UsageError(
                f"{what} = {source!r}: no such file. A file on the hub is written {HUB}OWNER/REPOSITORY/FILE."
            )
    if sha256 is not None and (found := file_hash(path)) != sha256.lower():
        raise UsageError(f"{what} = {source!r}: its sha256 is {found}, not {sha256}. It is another or a damaged file.")
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
    if folder.is_dir():
        for group in needed:
            if not any((folder / name).is_file() for name in group):
                raise UsageError(f"{what} = {source!r}: the folder has no {' or '.join(group)}.")
        return folder
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise UsageError(f"{what} = {source!r}: no such folder. A repository on the hub is written OWNER/REPOSITORY.")
    complete = all(any(_cached(source, name, revision) for name in group) for group in needed)
    everything = [group[0] for group in needed] + list(optional)
    found = [_one_of(source, group, revision, what, everything) for group in needed]
    if not complete:
        for name in optional:
            _download(source, name, revision, what)
    return found[0].parent


@contextmanager
def fail_fast() -> Iterator[None]:
    """Inside, other packages' requests to the hub fail at once if it cannot be reached, instead of after retries."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or _offline() or _unreachable() is not None
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def load_tensors(path: Path, what: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint: safetensors, or a torch file read with `weights_only=True`.

    Raises:
        UsageError: the file is damaged or holds something else than named tensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    require_whole(path, what)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise UsageError(
            f"{what}: {path} cannot be read as a checkpoint without running code from it: {error}"
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


def _one_of(
    repository: str, names: Sequence[str], revision: str | None, what: str, everything: Sequence[str] = ()
) -> Path:
    """The first of these files that the cache has; else the first that the hub has.

    `everything` is what the user had better download along with it, if it has to be done by hand.
    """
    for name in names:
        if (path := _cached(repository, name, revision)) is not None:
            return path
    how = (
        f"Download it once with network (`hf download {repository} {' '.join(everything or names[:1])}`), "
        "or give a local path in the options of the recipe."
    )
    where = f"{what}: {repository}/{names[0]} is not in the local cache"
    if _offline():
        raise UsageError(f"{where}, and HF_HUB_OFFLINE is set. {how}")
    if (reason := _unreachable()) is not None:
        raise UsageError(f"{where}, and the hub cannot be reached ({reason}). {how}")
    for name in names:
        if (path := _download(repository, name, revision, what)) is not None:
            return path
    raise UsageError(f"{what}: the hub's repository {repository} has no {' or '.join(names)}")


def _cached(repository: str, name: str, revision: str | None) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, name, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise UsageError(f"{repository!r} is neither a local folder nor a repository on the hub: {error}") from None


def _download(repository: str, name: str, revision: str | None, what: str) -> Path | None:
    """The file, or None if the repository has none of this name."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, name, revision=revision))
    except RemoteEntryNotFoundError:
        return None
    except OSError as error:  # every error of the hub's client is one
        raise UsageError(f"{what}: {repository}/{name} cannot be downloaded: {error}") from error


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")


def _unreachable() -> str | None:
    """Why the hub does not answer, or None if it does; takes a few seconds at most."""
    from huggingface_hub import constants

    try:
        with urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=_PROBE_SECONDS):
            return None
    except HTTPError:
        return None  # it answered
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))
