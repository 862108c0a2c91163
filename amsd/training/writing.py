"""Checkpoints written by a thread beside the training: complete or absent, whenever the run ends or is killed.

A training waits until its state is copied to main memory; files, hashes and fsync are the thread's. Processes that
write one checkpoint together agree on its end in a group of their own, so their threads never meet the training's
exchanges. What one process cannot write is the error of all of them.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Thread
from typing import Any

import torch.distributed as dist

from amsd import __version__
from amsd.errors import RunError
from amsd.files import Writes, sha256, write_folder, write_json, writing
from amsd.run_directory import ADDED_LATER, FORMAT, RunDirectory
from amsd.training import processes
from amsd.training.events import CheckpointRecord

_LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "peft", "safetensors", "numpy")


@dataclass(frozen=True)
class Parts:
    """What this process writes of one checkpoint; each is taken when it is called, and writes into a folder."""

    step: int
    recipe_identity: str
    weights: Callable[[], Writes]
    state: Callable[[], Writes]

    def taken(self) -> Parts:
        """The same with everything copied now, so that training may go on."""
        weights, state = self.weights(), self.state()
        return Parts(self.step, self.recipe_identity, lambda: weights, lambda: state)


@dataclass(frozen=True)
class BegunCheckpoint:
    """A checkpoint that is being written."""

    step: int
    folder: Path
    weights: Future[str]
    whole: Future[int]

    @property
    def path(self) -> Path:
        """Its folder, once everything is in it.

        Raises:
            RunError: it cannot be written.
        """
        self.whole.result()
        return self.folder

    @property
    def weights_sha256(self) -> str:
        """Identity of the weights, as soon as it is known.

        Raises:
            RunError: they cannot be written.
        """
        return self.weights.result()


class CheckpointWriter:
    """Writes one checkpoint at a time. Every process has one, and all of them make the same calls."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._agree = _Agreement()
        self._thread: Thread | None = None
        self._weights: Future[str] = Future()
        self._whole: Future[int] = Future()
        self._whole.set_result(0)

    @property
    def is_done(self) -> bool:
        """Whether what was begun is written, or has failed."""
        return self._whole.done()

    @property
    def has_failed(self) -> bool:
        """Whether what was begun has failed."""
        return self._whole.done() and self._whole.exception() is not None

    def begin(self, parts: Parts, background: bool) -> BegunCheckpoint:
        """Write the checkpoint of a step; in the background only its copies are made here.

        Raises:
            RunError: the checkpoint before this one cannot be written.
        """
        self.finish()
        self._weights, self._whole = Future(), Future()
        taken = parts.taken() if background else parts
        self._thread = Thread(target=self._work, args=(taken,), name="amsd-checkpoint", daemon=True)
        self._thread.start() if background else self._thread.run()
        return BegunCheckpoint(parts.step, self._run.checkpoint(parts.step), self._weights, self._whole)

    def finish(self) -> CheckpointRecord | None:
        """Wait until what was begun is complete; returns it, None if nothing was begun.

        Raises:
            RunError: it cannot be written.
        """
        if self._thread is None:
            return None
        try:
            step = self._whole.result()
            return CheckpointRecord(step, self._run.checkpoint(step), self._weights.result())
        finally:
            # It still frees its copies: PyTorch aborts the process if Python ends in the middle of that.
            if self._thread.ident is not None:
                self._thread.join()
            self._thread = None

    def _work(self, parts: Parts) -> None:
        try:
            self._write(parts)
            self._whole.set_result(parts.step)
        except BaseException as error:  # noqa: BLE001  # raised again where the training asks for it
            for each in (self._weights, self._whole):
                if not each.done():
                    each.set_exception(error)

    def _write(self, parts: Parts) -> None:
        """Weights first, because an evaluation waits for their identity; then the state; then all of it in place."""
        run, target = self._run, self._run.checkpoint(parts.step)
        aside = run.checkpoints / f".parts-{parts.step:06d}"
        main = processes.rank() == 0
        files: dict[str, str] = {}

        def weights() -> str:
            with writing(target):
                shutil.rmtree(aside, ignore_errors=True)
                (aside / "state").mkdir(parents=True)
                (aside / "weights").mkdir()
                taken.pop()(aside / "weights")
                files.update(_hashes(aside / "weights"))
            return weights_identity(files)

        def state() -> None:
            with writing(target):
                parts.state()(aside / "state")

        def whole() -> None:
            _put_in_place(run, parts, aside, files)

        try:
            taken = [parts.weights()]  # on every process: sharded weights are gathered
            self._weights.set_result(self._agree(weights if main else None) or "")
            self._agree(state)
            self._agree(whole if main else None)
        finally:
            if main:
                shutil.rmtree(aside, ignore_errors=True)


def available_memory() -> int:
    """Bytes of main memory that this process may still use: of the machine, and of its control group (Slurm, Docker).

    What a group keeps of files counts as free, for the system lets go of it first.
    """
    import psutil

    free = int(psutil.virtual_memory().available)
    try:
        own = Path("/proc/self/cgroup").read_text(encoding="utf-8").strip().rpartition("::")[2].lstrip("/")
        group = Path("/sys/fs/cgroup") / own
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        table = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return min(free, limit - used + int(table["file"]))
    except (OSError, ValueError, LookupError):  # no such group, or one without a limit
        return free


class _Agreement:
    """What the threads of all processes know of a part: that it is there, or why it cannot be."""

    def __init__(self) -> None:
        self._group: Any = dist.new_group(backend="gloo") if processes.world_size() > 1 else None

    def __call__(self, work: Callable[[], Any] | None) -> Any:
        """Do this process's part, if it has one, and wait for the others; returns what the main process's returned.

        Raises:
            RunError: one of the processes failed.
        """
        if self._group is None:
            return None if work is None else work()
        outcome: tuple[Any, str | None] = (None, None)
        own: BaseException | None = None
        try:
            outcome = (None if work is None else work(), None)
        except BaseException as error:  # noqa: BLE001  # the others must hear of it before it is raised
            own, outcome = error, (None, str(error))
        found: list[Any] = [None] * processes.world_size()
        dist.all_gather_object(found, outcome, group=self._group)
        if own is not None:
            raise own
        texts = [text for _, text in found if text is not None]
        if texts:
            raise RunError(texts[0])
        return found[0][0]


def _put_in_place(run: RunDirectory, parts: Parts, aside: Path, files: Mapping[str, str]) -> None:
    """Gather the parts of all processes in one folder with its manifest, and rename it; `files` are hashed already."""
    target = run.checkpoint(parts.step)

    def fill(folder: Path) -> None:
        (aside / "state").rename(folder / "state")
        for path in (aside / "weights").iterdir():
            path.rename(folder / path.name)
        (folder / "recipe.toml").write_bytes(run.recipe.read_bytes())
        manifest = {
            "format": FORMAT,
            "step": parts.step,
            "recipe_identity": parts.recipe_identity,
            "weights_sha256": weights_identity(files),
            "amsd": __version__,
            "libraries": _versions(),
            "files": _hashes(folder, files),
        }
        write_json(folder / "manifest.json", manifest)

    write_folder(target, fill)
    run.point("latest", parts.step)


def weights_identity(files: Mapping[str, str]) -> str:
    """Identity of the weights in a checkpoint, from the hashes of its files: tensors and configurations.

    Their bytes follow from the weights alone: diffusers writes one key of metadata, and adapters are written sorted.
    """
    named = ((name, digest) for name, digest in sorted(files.items()) if name.partition("/")[0] != "state")
    digest = hashlib.sha256()
    for name, each in named:
        if name.endswith(".safetensors") or name.rpartition("/")[2] == "config.json":
            digest.update(f"{name}\0{each}\n".encode())
    return digest.hexdigest()


def _hashes(folder: Path, known: Mapping[str, str] | None = None) -> dict[str, str]:
    """sha256 of every file of a checkpoint that its manifest covers, by relative path; of `known` ones as given."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name.partition("/")[0] not in ADDED_LATER:
            found[name] = (known or {}).get(name) or sha256(path)
    return found


def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
