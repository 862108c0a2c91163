"""`amsd export --push OWNER/REPOSITORY`: the exported folder on the hub."""

from __future__ import annotations

import os
from pathlib import Path

from amsd.errors import RunError, UsageError


def push(folder: Path, repository: str, private: bool = False) -> str:
    """Upload a folder to a model repository, which is created if it does not exist; returns its address.

    Raises:
        UsageError: the name is not one of the hub, or `HF_HUB_OFFLINE` is set.
        RunError: the hub refuses the upload or the card's metadata, or cannot be reached.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        raise UsageError(f"--push {repository}: HF_HUB_OFFLINE is set; unset it to upload.")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError: of the client's HTTP library
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
    )

    hub = HfApi()
    try:
        address = hub.create_repo(repository, private=private, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload of amsd export")
    except HFValidationError as error:
        raise UsageError(f"--push {repository!r} is not OWNER/REPOSITORY: {error}") from None
    except HfHubHTTPError as error:
        raise RunError(
            f"--push {repository}: the hub refuses ({error}). Run `hf auth login` with a token that may write. "
            f"The export itself is complete: {folder}"
        ) from error
    except ValueError as error:  # the hub has read the metadata at the head of README.md
        raise RunError(f"--push {repository}: {error} The export itself is complete: {folder}") from error
    except (HTTPError, OSError) as error:
        raise RunError(
            f"--push {repository}: the hub cannot be reached ({error}). The export is complete: {folder}"
        ) from error
    return str(address)
