"""The Hugging Face hub: the one place that asks it, downloads from it and uploads to it.

The rules are the same for models, weights of rewards and prompts. What the hub's cache holds is used without any
request. `HF_HUB_OFFLINE` (or `TRANSFORMERS_OFFLINE`) forbids every request. Before the first request a short probe
decides whether there is a network at all. Whatever the hub refuses becomes one message with the way out. The client
itself finds the token (`hf auth login` or `HF_TOKEN`) and shows bars of downloads on a terminal; in a pipe
`downloads` says what arrives.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from amsd import downloads
from amsd.errors import RunError, UsageError
from amsd.network import unreachable
from amsd.reading import reason_of

PREFIX = "hub:"
"""What stands before a file or a data set of the hub where a local path could stand too."""
_TIMEOUT = 10.0
_YES = ("1", "TRUE", "YES", "ON")


@dataclass(frozen=True)
class Repository:
    """A repository of the hub, at a revision (branch, tag or commit; None: its main branch)."""

    name: str
    """OWNER/REPOSITORY."""
    revision: str | None = None
    kind: Literal["model", "dataset"] = "model"

    def require_name(self, what: str | None = None) -> None:
        """Check that the hub could have a repository of this name. Makes no request.

        Raises:
            UsageError: it cannot; `what` gives the recipe's key and value (unset: the name alone).
        """
        _require_name(self.name, f"{what or repr(self.name)} is neither a folder nor a hub id")

    def cached(self, file: str, what: str | None = None) -> Path | None:
        """A file as the local cache has it; None if it was never downloaded. Makes no request.

        Raises:
            UsageError: the name cannot be one of the hub.
        """
        from huggingface_hub import try_to_load_from_cache

        self.require_name(what)
        found = try_to_load_from_cache(self.name, file, revision=self.revision, repo_type=self.kind)
        return Path(found) if isinstance(found, str) else None

    def require(self, what: str, way_out: str) -> None:
        """Make sure that the repository is there for this user and at this revision, with one request.

        Args:
            what: the recipe's key and value, or whose file it is; begins the message.
            way_out: what to do without the hub; ends the message.

        Raises:
            UsageError: no request may or can be made, or the hub refuses it.
        """
        from huggingface_hub import HfApi

        require_network(what, way_out)
        with self._asking(what, f"{what} is not in the local cache and the hub cannot be reached", way_out):
            HfApi().repo_info(self.name, revision=self.revision, repo_type=self.kind, timeout=_TIMEOUT)

    def cached_folder(self) -> Path | None:
        """The folder in which the local cache has files of this revision; None if it has none. Makes no request."""
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        try:
            return Path(
                snapshot_download(self.name, revision=self.revision, repo_type=self.kind, local_files_only=True)
            )
        except (HFValidationError, LocalEntryNotFoundError):
            return None

    def names(self, what: str, way_out: str) -> list[str]:
        """Names of the repository's files, with one request.

        Raises:
            UsageError: no request may or can be made, or the hub refuses it.
        """
        from huggingface_hub import HfApi

        require_network(what, way_out)
        with self._asking(what, f"{what} cannot be looked at on the hub", way_out):
            return list(HfApi().list_repo_files(self.name, revision=self.revision, repo_type=self.kind))

    def file(self, names: Sequence[str], what: str, way_out: str) -> Path:
        """The first of these files that the cache has; else the first that the repository has, downloaded.

        Raises:
            UsageError: the repository has none of them, or see `require`.
        """
        for name in names:
            if (path := self.cached(name, what)) is not None:
                return path
        require_network(f"{what}: {self.name}/{names[0]}", way_out)
        for name in names:
            if (path := self.downloaded(name, what, way_out)) is not None:
                return path
        raise UsageError(f"{what}: the hub's repository {self.name} has no {' or '.join(names)}")

    def downloaded(self, file: str, what: str, way_out: str) -> Path | None:
        """A file, downloaded if it is not the cache's; None if the repository has none of this name.

        Raises:
            UsageError: it cannot be downloaded.
        """
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import RemoteEntryNotFoundError

        with self._asking(what, f"{what}: {self.name}/{file} cannot be downloaded", way_out):
            try:
                with self.telling():
                    return Path(hf_hub_download(self.name, file, revision=self.revision, repo_type=self.kind))
            except RemoteEntryNotFoundError:
                return None

    def folder(self, patterns: Sequence[str], what: str, way_out: str) -> Path:
        """The repository's files that match one of the patterns, downloaded where the cache has them not.

        Raises:
            UsageError: they cannot be downloaded.
        """
        from huggingface_hub import snapshot_download

        with self._asking(what, f"{what} cannot be downloaded", way_out), self.telling():
            found = snapshot_download(
                self.name, revision=self.revision, repo_type=self.kind, allow_patterns=list(patterns)
            )
        return Path(found)

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Inside, say what arrives of this repository, whichever library downloads it."""
        from huggingface_hub import constants

        folder = Path(constants.HF_HUB_CACHE) / "--".join((f"{self.kind}s", *self.name.split("/")))
        with downloads.told(self.name, folder):
            yield

    @contextmanager
    def _asking(self, what: str, otherwise: str, way_out: str) -> Iterator[None]:
        """Inside, whatever the hub's client raises becomes one message; `otherwise` begins that of any other reason."""
        from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError: of the client's HTTP library
            GatedRepoError,
            HTTPError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        self.require_name(what)
        try:
            yield
        except GatedRepoError:
            raise UsageError(f"{what} is gated: accept the terms of {self.name} and run `hf auth login`.") from None
        except RepositoryNotFoundError:
            raise UsageError(
                f"{what}: {self.name} does not exist on the hub, or is private. Check the name; for a private one run "
                f"`hf auth login`. {way_out}"
            ) from None
        except RevisionNotFoundError:
            raise UsageError(f"{what}: {self.name} has no revision {self.revision!r} on the hub.") from None
        except (HTTPError, OSError, ValueError) as error:
            raise UsageError(f"{otherwise} ({reason_of(error)}) {way_out}") from error


def parse_file(source: str) -> tuple[Repository, str]:
    """Repository and file of `hub:OWNER/REPOSITORY/FILE[@REVISION]`.

    Raises:
        UsageError: it has another form.
    """
    path, _, revision = source.removeprefix(PREFIX).partition("@")
    parts = path.split("/", 2)
    if len(parts) < 3 or not all(parts):
        raise UsageError(
            f"{source!r} does not name a file on the hub; expected {PREFIX}OWNER/REPOSITORY/FILE[@REVISION]"
        )
    return Repository("/".join(parts[:2]), revision or None), parts[2]


def _require_name(name: str, refusal: str) -> None:
    """Check by the client's own rule that the hub could have a repository of this name.

    Raises:
        UsageError: `refusal`, and the rule.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UsageError(f"{refusal}: {error}") from None


def is_offline() -> bool:
    """Whether the environment forbids requests, read as the hub's client reads it when it is imported."""
    return (os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or "").upper() in _YES


def silence() -> str | None:
    """Why the hub may or can not be asked, or None if it answers; takes a few seconds at most."""
    from huggingface_hub import constants

    if is_offline():
        return "HF_HUB_OFFLINE is set"
    reason = unreachable(constants.ENDPOINT)
    return None if reason is None else f"the hub cannot be reached ({reason})"


def require_network(what: str, way_out: str) -> None:
    """Fail at once, and in plain words, where the hub's clients would retry for most of a minute.

    Raises:
        UsageError: the hub may or can not be asked for what is not in the cache.
    """
    reason = silence()
    if reason is not None:
        raise UsageError(f"{what} is not in the local cache and {reason}. {way_out}")


@contextmanager
def failing_fast() -> Iterator[None]:
    """Inside, other packages' requests to the hub fail at once if it cannot be reached, instead of after retries."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or silence() is not None
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def keeping_download_bars() -> Iterator[None]:
    """Inside, other packages may hide bars; those of downloads, which take minutes, are shown afterwards as before."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars

    were_hidden = are_progress_bars_disabled()
    try:
        yield
    finally:
        if not were_hidden:
            enable_progress_bars()


def require_pushable(repository: str) -> None:
    """Check what can be known of an upload before there is anything to upload.

    Raises:
        UsageError: the name is not one of the hub, or requests are forbidden.
    """
    _require_name(repository, f"--push {repository!r} is not OWNER/REPOSITORY")
    if is_offline():
        raise UsageError(f"--push {repository}: HF_HUB_OFFLINE is set; unset it to upload.")


def push(folder: Path, repository: str, private: bool = False) -> str:
    """Upload a folder to a model repository, which is created if it does not exist; returns its address.

    Raises:
        UsageError: the name is not one of the hub, or requests are forbidden.
        RunError: the hub refuses the upload or the card's metadata, or cannot be reached.
    """
    require_pushable(repository)
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError: of the client's HTTP library
        HfHubHTTPError,
        HTTPError,
    )

    client, complete = HfApi(), f"The export itself is complete: {folder}"
    try:
        address = client.create_repo(repository, private=private, exist_ok=True)
        client.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload of amsd export")
    except HfHubHTTPError as error:
        raise RunError(
            f"--push {repository}: the hub refuses ({error}). Run `hf auth login` with a token that may write. "
            f"{complete}"
        ) from error
    except ValueError as error:  # the hub has read the metadata at the head of README.md
        raise RunError(f"--push {repository}: {error} {complete}") from error
    except (HTTPError, OSError) as error:
        raise RunError(f"--push {repository}: the hub cannot be reached ({error}). {complete}") from error
    return str(address)
