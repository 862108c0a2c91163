"""Prompts from a data set on the hub: `hub:ID[:SPLIT[:COLUMN]]`, or one file of it: `hub:OWNER/NAME/FILE`."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

from amsd.prompts.prompt_set import PromptError
from amsd.prompts.readers import READERS, find_column, read_file

PREFIX = "hub:"
#: How long the hub may take to answer a first knock, in seconds (its own client would retry for half a minute).
_PATIENCE = 3.0


def read_hub(source: str, wanted: str | None = None) -> list[str]:
    """Entries of a data set's column, from the local cache where it is there.

    The column is that of the source, else `wanted`, else one that `readers.KEYS` names.

    Raises:
        PromptError: the data set, split or column is absent, or the hub cannot be reached.
    """
    name, _, rest = source.removeprefix(PREFIX).partition(":")
    split, _, column = rest.partition(":")
    if not name:
        raise PromptError(f"{source}: must have the form hub:ID[:SPLIT[:COLUMN]], such as hub:owner/name:train:prompt.")
    if Path(name).suffix.lower() in READERS and name.count("/") >= 2:
        if rest:
            raise PromptError(f"{source}: a single file has no split; write hub:{name}")
        return read_file(_download(source, name), wanted)
    return _column(source, name, split or "train", column or wanted)


def _download(source: str, name: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    owner, repository, file = name.split("/", 2)
    offline = _offline_reason()
    try:
        return Path(
            hf_hub_download(f"{owner}/{repository}", file, repo_type="dataset", local_files_only=offline is not None)
        )
    except LocalEntryNotFoundError as error:
        raise PromptError(_absent(source, offline or str(error))) from None
    except (OSError, HFValidationError) as error:  # every error of the hub's client is one of these
        raise PromptError(f"{source}: cannot be downloaded: {error}") from None


def _column(source: str, name: str, split: str, column: str | None) -> list[str]:
    try:
        import datasets
    except ImportError:
        raise PromptError(f"{source}: hub data sets need: pip install 'amsd[data]'") from None
    from datasets.exceptions import DatasetsError

    offline = None if Path(name).is_dir() else _offline_reason()
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or offline is not None
    try:
        table = datasets.load_dataset(name, split=split)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        if offline is not None:
            raise PromptError(_absent(source, offline)) from None
        raise PromptError(f"{source}: cannot be loaded: {error}") from None
    finally:
        datasets.config.HF_HUB_OFFLINE = before
    names = list(table.column_names)
    if column is not None and column not in names:
        raise PromptError(f"{source}: has no column {column!r}; there are {', '.join(names)}.")
    chosen = column or names[find_column(names, source)]
    entries = list(table[chosen])
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, str):
            raise PromptError(f"{source}, row {number}: column {chosen!r} holds {entry!r:.60}, which is not a string.")
    return entries


def _absent(source: str, reason: str) -> str:
    return (
        f"{source}: is not in the local cache, and the hub cannot be asked ({reason}). "
        "Download it once with network, or name a local prompt file."
    )


def _offline_reason() -> str | None:
    """Why the hub cannot be asked, or None if it answers; takes a few seconds at most."""
    from huggingface_hub import constants

    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return "HF_HUB_OFFLINE is set"
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return None  # the proxy knows names that this machine need not know
    address = urlsplit(constants.ENDPOINT)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), timeout=_PATIENCE).close()
    except OSError as error:
        return f"{address.hostname}: {error}"
    return None
