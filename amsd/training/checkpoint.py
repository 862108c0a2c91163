"""Checkpoints on disk: verified on resume, scored, retained by rule, taken back."""

from __future__ import annotations

import logging
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from amsd.errors import RunError
from amsd.files import move_file, write_json
from amsd.reading import parsed_object
from amsd.run_directory import GONE, RunDirectory, damage, read_manifest

_LOG = logging.getLogger(__name__)


def weights_sha256(checkpoint: Path) -> str:
    """Identity of a checkpoint's weights, from its manifest.

    Raises:
        RunError: the manifest cannot be read.
    """
    return read_manifest(checkpoint).weights_sha256


@dataclass(frozen=True)
class Start:
    """Where a training goes on."""

    checkpoint: Path | None
    """The newest whole checkpoint; None at the beginning of a run."""

    @classmethod
    def of(cls, run: RunDirectory) -> Self:
        """Look for it, which reads and hashes all of a checkpoint; errors as `newest_whole`."""
        return cls(newest_whole(run))

    @property
    def step(self) -> int | None:
        """The optimizer steps that are done; None at the beginning."""
        return None if self.checkpoint is None else int(self.checkpoint.name.removeprefix("step-"))


def newest_whole(run: RunDirectory) -> Path | None:
    """The newest checkpoint that matches its manifest, with what is wrong with the newer ones logged.

    Raises:
        RunError: there are checkpoints, and all of them are damaged.
    """
    faults: list[str] = []
    for step in reversed(run.steps()):
        checkpoint = run.checkpoint(step)
        fault = damage(checkpoint)
        if fault is None:
            for text in faults:
                _LOG.warning("%s; resuming from %s instead", text, checkpoint.name)
            return checkpoint
        faults.append(f"checkpoint {checkpoint.name} is damaged: {fault}")
    if faults:
        raise RunError("No whole checkpoint is left to resume from:\n" + "\n".join(faults))
    return None


def withdraw(run: RunDirectory, step: int) -> bool:
    """Delete the checkpoint of `step` as if it had never been written; returns whether there was one."""
    checkpoint = run.checkpoint(step)
    aside = run.checkpoints / f".withdrawn-{step:06d}"
    try:
        checkpoint.rename(aside)
    except FileNotFoundError:  # none was due at this step, or another process was faster
        return False
    shutil.rmtree(aside, ignore_errors=True)
    left = run.steps()
    if left:
        run.point("latest", left[-1])
    else:
        (run.checkpoints / "latest").unlink(missing_ok=True)
    return True


def retain(run: RunDirectory, keep: int, every: int = 1) -> None:
    """Delete checkpoints other than the newest `keep` and the best; their evaluation files and pictures stay.

    They are small, and reports need them: they move beside those of the base model. What an announced end has written
    between two multiples of `every` goes as soon as there is a newer one.
    """
    best, steps = run.pointer("best"), run.steps()
    regular = [step for step in steps if step % every == 0 or step == steps[-1]]
    kept = {*regular[-keep:]}
    for step in steps:
        if step not in kept and run.checkpoint(step) != best:
            retire(run, step)


def retire(run: RunDirectory, step: int) -> None:
    """Delete one checkpoint; its evaluation files and pictures stay.

    A rename takes it out of sight first, so that nobody sees a part of it, also if this process is killed here or
    another one is still evaluating it.
    """
    gone = run.checkpoints / f"{GONE}{step:06d}"
    _settle(run, gone)  # of an earlier time, if there is one
    run.checkpoint(step).rename(gone)
    _settle(run, gone)


def _settle(run: RunDirectory, gone: Path) -> None:
    """Move the results of a checkpoint that is out of sight to their place, file by file, and delete the rest."""
    number = gone.name.removeprefix(GONE)
    if not (number.isascii() and number.isdigit()):
        return  # nothing that amsd has put there
    step = int(number)
    for source, place in (
        (gone / "evaluation", run.left_evaluation(step)),
        (gone / "samples", run.left_samples(step)),
    ):
        for file in [path for path in source.rglob("*") if path.is_file()]:
            target = place / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            move_file(file, target)
    shutil.rmtree(gone, ignore_errors=True)


def discard_after(run: RunDirectory, step: int) -> None:
    """Delete what a damaged or abandoned continuation left beyond `step`, and unfinished folders."""
    for gone in run.checkpoints.glob(f"{GONE}[0-9]*"):
        _settle(run, gone)
    for other in run.steps():
        if other > step:
            shutil.rmtree(run.checkpoint(other))
    for other in run.left_steps():
        if other > step:
            shutil.rmtree(run.left_evaluation(other), ignore_errors=True)
            shutil.rmtree(run.left_samples(other), ignore_errors=True)
    if run.checkpoints.is_dir():
        for path in run.checkpoints.glob(".*"):
            if path.is_dir():
                shutil.rmtree(path)


class CheckpointScores:
    """Scores of evaluated checkpoints by step, on disk in `checkpoints/scores.json`, and who is best."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._file = run.checkpoints / "scores.json"

    def read(self) -> dict[int, float]:
        """All scores; a damaged file is announced and counts as empty, so that checkpoints are scored again."""
        if not self._file.is_file():
            return {}
        try:
            found = {int(step): float(score) for step, score in parsed_object(self._file.read_bytes()).items()}
            if not all(map(math.isfinite, found.values())):
                raise ValueError("a score is not finite")
        except (OSError, ValueError, TypeError, OverflowError) as error:
            _LOG.warning("%s is damaged (%s); scores before the newest checkpoint are lost", self._file, error)
            return {}
        return found

    def add(self, step: int, score: float) -> None:
        """Record a score; the highest one's checkpoint becomes `best` (the earlier of equals).

        Raises:
            RunError: the score is not finite.
        """
        if not math.isfinite(score):
            raise RunError(f"step {step} has the score {score}, which cannot decide which checkpoint is best")
        scores = self.read() | {step: score}
        self._write(scores)

    def drop_after(self, step: int) -> None:
        """Forget scores of steps that will be trained again."""
        scores = {other: value for other, value in self.read().items() if other <= step}
        if self._file.is_file():
            self._write(scores)
        if not scores:
            (self._run.checkpoints / "best").unlink(missing_ok=True)

    def _write(self, scores: dict[int, float]) -> None:
        write_json(self._file, {str(step): value for step, value in sorted(scores.items())})
        if scores:
            self._run.point("best", max(sorted(scores), key=lambda other: scores[other]))
