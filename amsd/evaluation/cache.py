"""Results by the identity of what determines them, shared by runs and safe for concurrent processes.

`FOLDER/metrics/<sha256>.json` holds one metric of one set of images (values per prompt),
`FOLDER/pictures/<sha256>.safetensors` the kept samples of one set of images, `FOLDER/embeddings/<sha256>.safetensors`
the embeddings of one that distances are measured to. Files are written aside and renamed; a damaged one is reported and
counts as absent.
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from amsd.evaluation.identity import identity
from amsd.files import DiskError, write_json, writing
from amsd.reading import parsed_object

_KIND_BYTES = 2 * 2**30
"""Kept pictures may take this much, embeddings too; the least recently used go first."""

_ABANDONED = 3600.0
"""Seconds after which a file that is still being written is taken for left behind."""

Damaged = Callable[[Path, str], None]


def default_folder() -> Path:
    """`AMSD_CACHE`, else the user's cache folder of this platform; the temporary folder for a user without a home."""
    chosen = os.environ.get("AMSD_CACHE")
    if chosen:
        return Path(chosen).expanduser() / "evaluation"
    try:
        home = Path.home()
    except RuntimeError:  # a container's user who is in no table of users
        home = Path(tempfile.gettempdir())
    if sys.platform == "darwin":
        root = home / "Library" / "Caches"
    elif sys.platform == "win32":
        root = Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local"))
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return root / "amsd" / "evaluation"


class Cache:
    """Values and pictures by identity; `damaged` is told of every file that cannot be trusted."""

    def __init__(self, folder: Path, damaged: Damaged) -> None:
        self.folder = folder
        self._damaged = damaged

    def values(self, key: str, count: int) -> tuple[float, ...] | None:
        """The `count` per-prompt values under this identity, or None."""
        file = self._values_file(key)
        try:
            if not file.is_file():
                return None
            entry = parsed_object(file.read_text(encoding="utf-8"))
            values = tuple(float(value) for value in entry["per_prompt"])
            if entry["sha256"] != identity(list(values)):
                raise ValueError("its checksum does not match")
            if len(values) != count or not all(map(math.isfinite, values)):
                raise ValueError(f"expected {count} finite values but got {len(values)}")
        except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
            self._say(file, error)
            return None
        return values

    def keep_values(self, key: str, values: tuple[float, ...], origin: dict[str, Any]) -> None:
        """Store per-prompt values; `origin` says to a human what they are."""
        entry = {"per_prompt": list(values), "sha256": identity(list(values)), "origin": origin}
        self._kept(self._values_file(key), lambda file: write_json(file, entry))

    def pictures(self, key: str, count: int, samples: int) -> Tensor | None:
        """At least `count` prompts' pictures under this identity (count, samples, 3, H, W), uint8, or None."""
        pictures = self._tensor("pictures", key, samples, 5)
        return None if pictures is None or len(pictures) < count else pictures[:count]

    def keep_pictures(self, key: str, pictures: Tensor) -> None:
        """Store pictures (prompts, samples, 3, H, W), uint8, and forget the oldest ones above the limit."""
        self._keep_tensor("pictures", key, pictures)

    def embeddings(self, key: str, count: int, samples: int) -> Tensor | None:
        """Embeddings (count, samples, D), float32, under this identity, or None."""
        embeddings = self._tensor("embeddings", key, samples, 3)
        return None if embeddings is None or len(embeddings) != count else embeddings

    def keep_embeddings(self, key: str, embeddings: Tensor) -> None:
        """Store embeddings (prompts, samples, D), float32, and forget the oldest ones above the limit."""
        self._keep_tensor("embeddings", key, embeddings)

    def _tensor(self, kind: str, key: str, samples: int, dimensions: int) -> Tensor | None:
        """The tensor (prompts, samples, ...) of this kind and identity, or None if it is absent or damaged."""
        file = self._tensor_file(kind, key)
        try:
            if not file.is_file():
                return None
            with safe_open(file, framework="pt") as reader:
                tensor: Tensor = reader.get_tensor(kind)
                expected = (reader.metadata() or {}).get("checksum")
            if tensor.ndim != dimensions or tensor.shape[1] != samples or _checksum(tensor) != expected:
                raise ValueError(f"shape {tuple(tensor.shape)} or checksum does not match")
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise ValueError("its values are not all finite")
        except (OSError, SafetensorError, ValueError) as error:
            self._say(file, error)
            return None
        with suppress(OSError):  # another process has trimmed it, or it is another user's; touching would make a file
            os.utime(file)
        return tensor

    def _keep_tensor(self, kind: str, key: str, tensor: Tensor) -> None:
        def write(file: Path) -> None:
            file.parent.mkdir(parents=True, exist_ok=True)
            handle, aside = tempfile.mkstemp(dir=file.parent, suffix=".tmp")
            os.close(handle)
            try:
                save_file({kind: tensor.contiguous()}, aside, metadata={"checksum": _checksum(tensor)})
                Path(aside).replace(file)
            finally:
                Path(aside).unlink(missing_ok=True)
            self._trim(file.parent)

        self._kept(self._tensor_file(kind, key), write)

    def _kept(self, file: Path, write: Callable[[Path], None]) -> None:
        """Write a file; where that is impossible the result is only not remembered, which is announced."""
        try:
            with writing(file):
                write(file)
        except DiskError as error:
            self._say(file, error.__cause__ or error)

    def _say(self, file: Path, error: BaseException) -> None:
        """Name a file that cannot be trusted; or the whole folder, in the same words each time, if that is closed."""
        number = error.errno if isinstance(error, OSError) else None
        if number is None:
            self._damaged(file, f"{error}; computed again")
            return
        self._damaged(
            self.folder,
            f"results cannot be kept or read there ({os.strerror(number)}), so amsd computes them again. Make it "
            "writable, or name another folder in AMSD_CACHE.",
        )

    def _values_file(self, key: str) -> Path:
        return self.folder / "metrics" / f"{key}.json"

    def _tensor_file(self, kind: str, key: str) -> Path:
        return self.folder / kind / f"{key}.safetensors"

    @staticmethod
    def _trim(folder: Path) -> None:
        for left in folder.glob("*.tmp"):  # of processes that were killed
            with suppress(FileNotFoundError):
                if time.time() - left.stat().st_mtime > _ABANDONED:
                    left.unlink()
        known = []
        for file in folder.glob("*.safetensors"):
            try:
                status = file.stat()
            except FileNotFoundError:  # another process trims too
                continue
            known.append((status.st_mtime, status.st_size, file))
        total = 0
        for _, size, file in sorted(known, reverse=True):
            total += size
            if total > _KIND_BYTES:
                file.unlink(missing_ok=True)


def _checksum(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()
