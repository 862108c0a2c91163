"""What of a run lies on disk: checkpoints written, scored, taken back and resumed from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from amsd.ends import Ends
from amsd.errors import Diverged
from amsd.files import write_text
from amsd.reading import reading
from amsd.recipe import dump_toml, identity
from amsd.rewards.calling import happening
from amsd.run_directory import RunDirectory
from amsd.training import checkpoint as checkpoints
from amsd.training.events import CheckpointRecord, Listener, Notice
from amsd.training.method import Method
from amsd.training.persistence import load_training, save_training
from amsd.training.update import Updater

Evaluate = Callable[[CheckpointRecord], float | None]
"""Called on every process after a checkpoint is complete; returns the score that decides which one is best."""


Enough = Callable[[CheckpointRecord], Notice | None]
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

    def is_due(self, step: int) -> bool:
        """Whether the recipe asks for a checkpoint after this step."""
        training = self._method.recipe.training
        return step % training.checkpoint_every == 0 or step == training.steps

    def holds(self, step: int) -> bool:
        """Whether the newest checkpoint is that of this step."""
        return self.run.pointer("latest") == self.run.checkpoint(step)

    def record(self, step: int) -> CheckpointRecord:
        """The checkpoint of a step, which is there."""
        path = self.run.checkpoint(step)
        return CheckpointRecord(step, path, checkpoints.weights_sha256(path))

    def write(self, step: int) -> CheckpointRecord:
        """Write the checkpoint of a step, which no signal interrupts.

        Raises:
            RunError: something that it takes along is not finite.
        """
        with self._ends.held():
            return self._write(step)

    def _write(self, step: int) -> CheckpointRecord:
        recipe, policy = self._method.recipe, self._method.problem.policy
        self._announce("checkpoint", step)
        self._updater.require_finite(step)
        if self._is_main and not self.run.recipe.is_file():  # a trainer that was built by hand
            write_text(self.run.recipe, dump_toml(recipe))

        def save_weights(folder: Path) -> None:
            if policy.sharded or self._is_main:
                with self._updater.averaged():
                    policy.save(folder)

        def save_state(folder: Path) -> None:
            save_training(self._method, self._updater, step, folder)

        checkpoints.write_checkpoint(self.run, step, save_weights, save_state, identity(recipe))
        record = self.record(step)
        for listener in self._listeners:
            listener.on_checkpoint(record)
        return record

    def score(self, record: CheckpointRecord) -> None:
        """Have a checkpoint evaluated, and let go of those that the recipe does not keep."""
        if self._evaluate is not None:
            self._announce("evaluation", record.step)
            where = happening(f"Evaluation of step {record.step}")
            with self.withdrawing(record.step), self._updater.averaged(), where:
                score = self._evaluate(record)
            if score is not None and self._is_main:
                self.scores.add(record.step, score)
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
            if not checkpoints.withdraw(self.run, step):
                raise
            left = self.run.pointer("latest")
            kept = "no checkpoint is left" if left is None else f"the newest is now {left.name}"
            raise Diverged(f"{error}\namsd removed the checkpoint of step {step}; {kept}.") from error

    def resume(self) -> int:
        """Bring everything back to the newest whole checkpoint; returns its step, 0 if there is none.

        Raises:
            RunError: every checkpoint is damaged.
            UsageError: the newest is whole, but holds something else than this run's state.
        """
        path = checkpoints.newest_whole(self.run)
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
