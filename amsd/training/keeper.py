"""What of a run lies on disk: checkpoints written, scored, taken back and resumed from."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from amsd.ends import AnnouncedEnd, Ends
from amsd.errors import Diverged, RunError, option
from amsd.files import Writes, write_nothing, write_text
from amsd.reading import reading
from amsd.recipe import dump_toml, identity
from amsd.rewards.calling import happening
from amsd.run_directory import RunDirectory
from amsd.training import checkpoint as checkpoints
from amsd.training import processes
from amsd.training.checkpoint import Start
from amsd.training.events import AnyCheckpoint, CheckpointRecord, Listener, Notice
from amsd.training.method import Method
from amsd.training.persistence import checkpoint_bytes, load_training, training_as_it_is
from amsd.training.update import Updater
from amsd.training.writing import CheckpointWriter, Parts, available_memory

_LOG = logging.getLogger(__name__)

SPARE = 1.25
"""Free main memory that a checkpoint written in the background needs, in sizes of it."""

Evaluate = Callable[[AnyCheckpoint], float | None]
"""Called on every process after a checkpoint was begun; returns the score that decides which one is best."""


Enough = Callable[[AnyCheckpoint], Notice | None]
"""Called on every process after a checkpoint was scored; returns why the run ends here, on all of them or on none."""


class Keeper:
    """Writes the checkpoints of a run, has them scored, and brings a trainer back to the newest one."""

    def __init__(
        self,
        method: Method[Any],
        updater: Updater,
        run: RunDirectory,
        listeners: Sequence[Listener],
        evaluate: Evaluate | None,
        ends: Ends,
    ) -> None:
        self.run = run
        self.scores = checkpoints.CheckpointScores(run)
        self._method = method
        self._updater = updater
        self._listeners = listeners
        self._evaluate = evaluate
        self._ends = ends
        self._is_main = updater.accelerator.is_main_process
        self._writer = CheckpointWriter(run)
        self._begun: AnyCheckpoint | None = None
        self._to_be_scored = False
        self._said_waiting = False
        self._waited = 0.0
        self._nested = False
        self._had_recipe = False

    def is_due(self, step: int) -> bool:
        """Whether the recipe asks for a checkpoint after this step."""
        training = self._method.recipe.training
        return step % training.checkpoint_every == 0 or step == training.steps

    def holds(self, step: int) -> bool:
        """Whether the newest checkpoint, begun or complete, is that of this step."""
        if self._begun is not None and self._begun.step == step:
            return True
        return self.run.pointer("latest") == self.run.checkpoint(step)

    def record(self, step: int) -> AnyCheckpoint:
        """The checkpoint of a step, begun or complete."""
        if self._begun is not None and self._begun.step == step:
            return self._begun
        path = self.run.checkpoint(step)
        return CheckpointRecord(step, path, checkpoints.weights_sha256(path))

    def write(self, step: int) -> AnyCheckpoint:
        """Begin the checkpoint of a step, which no signal interrupts: it is being written when this returns.

        Raises:
            RunError: something that it takes along is not finite, or the checkpoint before cannot be written.
        """
        with self._ends.held(), self._waiting():
            return self._write(step)

    def _write(self, step: int) -> AnyCheckpoint:
        self.finish()
        recipe = self._method.recipe
        self._announce("checkpoint", step)
        self._updater.require_finite(step)
        if self._is_main:
            self._require_place()

        def state() -> Writes:
            return training_as_it_is(self._method, self._updater, step)

        self._to_be_scored = self._evaluate is not None
        parts = Parts(step, identity(recipe), self._weights, state)
        self._begun = self._writer.begin(parts, self._in_background(step))
        return self._begun

    def _require_place(self) -> None:
        """Check that the run's folder is still there; a trainer that was built by hand writes its recipe.

        Raises:
            RunError: it was moved or deleted, so that its checkpoints would lie at two places.
        """
        there = self.run.recipe.is_file()
        if not there and self._had_recipe:
            raise RunError(
                f"{self.run.path} was moved or deleted while it was being trained. If you moved it, its checkpoints "
                f"are whole: continue it there with {option('output')} and {option('resume', 'resume=True')}."
            )
        if not there:
            write_text(self.run.recipe, dump_toml(self._method.recipe))
        self._had_recipe = True

    def _weights(self) -> Writes:
        policy = self._method.problem.policy
        if not (policy.sharded or self._is_main):
            return write_nothing
        with self._updater.averaged():
            return policy.as_it_is()

    def _in_background(self, step: int) -> bool:
        """Whether main memory has room for a copy of everything; where it has not, training waits, which is said."""
        recipe = self._method.recipe
        if not recipe.training.background_checkpoints:
            return False
        size = checkpoint_bytes(recipe, self._method.problem.policy.trained_parameters)
        needed, room = SPARE * size, available_memory()
        enough = min(processes.gather([not self._is_main or needed <= room]))
        if not enough and self._is_main and not self._said_waiting:
            self._said_waiting = True
            text = (
                f"Training waits while checkpoints are written: a copy of what is written takes {needed / 2**30:.3g} "
                f"GiB of main memory, and {room / 2**30:.3g} GiB are free."
            )
            for listener in self._listeners:
                listener.on_notice(Notice("waiting-checkpoints", text, step))
        return enough

    def finish(self) -> None:
        """Wait until the checkpoint that was begun, if there is one, is complete, and tell of it.

        Raises:
            RunError: it cannot be written.
        """
        with self._ends.held(), self._waiting():
            record = self._writer.finish()
        if record is None:
            return
        for listener in self._listeners:
            listener.on_checkpoint(record)
        if not self._to_be_scored:  # else the ones before it stay until it is known to be sound
            self._retain()

    def look_after(self) -> None:
        """Tell of a checkpoint that is complete by now; waits for nothing."""
        if self._writer.is_done and not self._writer.has_failed:
            self.finish()

    @property
    def has_failed(self) -> bool:
        """Whether the checkpoint that was begun cannot be written on this process."""
        return self._writer.has_failed

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """After the body, whatever it raises, the checkpoint that was begun is complete; an announced end needs it."""
        try:
            yield
        except AnnouncedEnd:
            self.finish()
            raise
        except BaseException as failure:
            try:
                self.finish()
            except RunError as error:
                if error is not failure:  # what the body raised comes first
                    _LOG.warning("%s", error)
            raise
        self.finish()

    def seconds_waited(self) -> float:
        """How long training has waited for checkpoints since the last call."""
        waited, self._waited = self._waited, 0.0
        return waited

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        if self._nested:
            yield
            return
        self._nested, begin = True, time.perf_counter()
        try:
            yield
        finally:
            self._nested = False
            self._waited += time.perf_counter() - begin

    def score(self, record: AnyCheckpoint) -> None:
        """Have a checkpoint evaluated while it is being written, and let go of those that the recipe does not keep."""
        if self._evaluate is None:
            return
        self._announce("evaluation", record.step)
        where = happening(f"Evaluation of step {record.step}")
        with self.withdrawing(record.step), self._updater.averaged(), where:
            score = self._evaluate(record)
        if score is not None:
            self.finish()
            if self._is_main:
                self.scores.add(record.step, score)
        self._to_be_scored = False
        self._retain()

    def _retain(self) -> None:
        if self._is_main:
            training = self._method.recipe.training
            checkpoints.retain(self.run, training.keep, training.checkpoint_every)

    @contextmanager
    def withdrawing(self, step: int) -> Iterator[None]:
        """Inside, take the checkpoint of `step` back if its weights turn out to draw samples that are not finite."""
        try:
            yield
        except Diverged as error:
            self.finish()
            self._begun = None
            if not checkpoints.withdraw(self.run, step):
                raise
            left = self.run.pointer("latest")
            kept = "no checkpoint is left" if left is None else f"the newest is now {left.name}"
            raise Diverged(f"{error}\namsd removed the checkpoint of step {step}; {kept}.") from error

    def resume(self, start: Start | None = None) -> int:
        """Bring everything back to the newest whole checkpoint; returns its step, 0 if there is none.

        `start` is what has been found already (unset: it is looked for).

        Raises:
            RunError: every checkpoint is damaged.
            UsageError: the newest is whole, but holds something else than this run's state.
        """
        path = (start or Start.of(self.run)).checkpoint
        self._updater.accelerator.wait_for_everyone()
        if path is None:
            return 0
        with reading("the state to resume from", path / "state"):
            self._method.problem.policy.load(path)
            step = load_training(self._method, self._updater, path / "state")
        if self._is_main:
            checkpoints.discard_after(self.run, step)
            self.scores.drop_after(step)
            self.run.point("latest", step)
        self._updater.accelerator.wait_for_everyone()
        if self.is_due(step) and step not in self.scores.read():  # stopped between saving and evaluating
            self.score(self.record(step))
        else:
            self._retain()  # stopped between scoring and deleting
        return step

    def _announce(self, phase: str, step: int) -> None:
        for listener in self._listeners:
            listener.on_phase(phase, step + 1)
