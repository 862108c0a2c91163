"""`SOCTrainer`: the fit loop of reward fine-tuning, for any method.

A method is a child class that says what experience is, what the loss of its items is and what is logged of them
(`amsd.training.method`, docs/extending.md). Where experience comes from is a class attribute, so that a buffered
variant of any method changes nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from accelerate import Accelerator

from amsd.ends import AnnouncedEnd, Ends
from amsd.errors import RunError
from amsd.recipe import Recipe
from amsd.rewards.calling import happening
from amsd.run_directory import RunDirectory
from amsd.training import processes
from amsd.training.checkpoint import Start
from amsd.training.chunks import chunk_size, in_chunks
from amsd.training.clock import PhaseClock
from amsd.training.events import Listener, Notice, StepRecord
from amsd.training.experience import E, Sample
from amsd.training.gradients import BatchLosses, Gradients
from amsd.training.keeper import Enough, Evaluate, Keeper
from amsd.training.method import Method
from amsd.training.problem import ControlProblem
from amsd.training.sources import Batch, Buffered, ExperienceSource
from amsd.training.speed import Speed
from amsd.training.state import restore_rng, rng_state
from amsd.training.update import Updater
from amsd.training.validation import validation_values


class SOCTrainer(Method[E]):
    """Fits a policy; abstract in what `Method` is abstract in."""

    def __init__(
        self,
        problem: ControlProblem,
        run: RunDirectory,
        prompts: Sequence[str],
        accelerator: Accelerator,
        listeners: Sequence[Listener] = (),
        evaluate: Evaluate | None = None,
        validation_prompts: Sequence[str] = (),
        ends: Ends | None = None,
        enough: Enough | None = None,
    ) -> None:
        self.problem = problem
        self.recipe: Recipe = problem.recipe
        self.accelerator = accelerator
        self.listeners = tuple(listeners) if accelerator.is_main_process else ()
        self.clock = PhaseClock(problem.device, self._announce)
        self.collection = chunk_size(self.recipe, problem.device.type != "cpu", problem.policy.sharded)
        self.source: ExperienceSource[E] = self.source_class(self.recipe, prompts, self._collect, self.experience_class)
        self.step = 0
        self._ends = ends or Ends()
        self.updater = Updater(problem, accelerator, self._ends)
        self.gradients = Gradients(self, self.updater)
        self.speed = Speed(problem)
        self.keeper = Keeper(self, self.updater, run, self.listeners, evaluate, self._ends)
        self._validation_prompts = tuple(validation_prompts)
        self._said: set[str] = set()
        self._enough = enough

    def fit(self, start: Start | None = None) -> None:
        """Train up to the recipe's number of steps, from the newest whole checkpoint of the run if there is one.

        `start` is that one, where somebody has looked for it already. Training ends before, and in good order, at a
        checkpoint that is `enough`.

        Raises:
            RunError: a reward, an adjoint or a loss is not finite, or every checkpoint is damaged.
            AnnouncedEnd: a signal asked for it; the newest step has a checkpoint.
        """
        with processes.obeying(self._ends):
            self.step = self.keeper.resume(start)
        if self.step and self._ends_here():
            return
        # Between two steps a signal waits until all processes have heard of it.
        with self._ends.held(), self.keeper.finishing():
            while self.step < self.recipe.training.steps:
                self._make_step(self.step + 1)
                if self.keeper.is_due(self.step) and self._ends_here():
                    return
                self._end_if_asked()

    def _make_step(self, step: int) -> None:
        """A step and, where one is due, its checkpoint and that one's evaluation."""
        with self._dropping(), self.keeper.withdrawing(self.step), happening(f"Step {step}"):
            self.train_step(step)
        if self.keeper.is_due(self.step):
            record = self.keeper.write(self.step)
            self._end_if_asked()
            with processes.obeying(self._ends):
                self.keeper.score(record)

    def _ends_here(self) -> bool:
        """Whether the checkpoint of this step, if it has one, is the run's last although steps are left."""
        if self._enough is None or self.step >= self.recipe.training.steps or not self.keeper.is_due(self.step):
            return False
        with self.updater.averaged():
            notice = self._enough(self.keeper.record(self.step))
        if notice is None:
            return False
        self._tell(notice)
        return True

    def _end_if_asked(self) -> None:
        """End between two steps if a signal has asked any process for it; all of them agree on the step."""
        told = processes.gather([(self._ends.number or 0, self.keeper.has_failed)])
        if any(failed for _, failed in told):  # of a checkpoint: all processes raise it at the same step
            self.keeper.finish()
        self.keeper.look_after()
        number = max(number for number, _ in told)
        if not number:
            return
        with self._ends.held():
            if self.step and not self.keeper.holds(self.step):
                self.keeper.write(self.step)
            self.keeper.finish()
        raise AnnouncedEnd(number)

    @contextmanager
    def _dropping(self) -> Iterator[None]:
        """A step, which a first signal lets finish; after a second one all is as it was before the step."""
        state, tensors = self.state(), {name: value.clone() for name, value in self.state_tensors().items()}
        guard = self.updater.guard
        before = (guard.in_a_row, rng_state(), self.source.mark())
        try:
            with self._ends.finishing():
                yield
        except AnnouncedEnd:
            self.restore(state, tensors)
            guard.in_a_row, rng, mark = before
            restore_rng(rng)
            self.source.roll_back(mark)
            self._end_if_asked()

    def train_step(self, step: int) -> StepRecord:
        """Make optimizer step `step`, from 1, and tell of it."""
        batch = self.source.batch(step)
        with self.clock.phase("loss"):
            done = self.gradients.take(batch, step)
        with self.clock.phase("optimizer"):
            norm = self.updater.make(step, done.usable)
        self.step = step
        values = self.step_values(batch, done.items) | self._common_values(batch, done, norm)
        if done.usable:
            self.after_step(done.items)
        if batch.collected:
            values["collection/batch"] = float(self.collection.largest)
        if not done.weights.any():
            self._tell_masked()
        elif done.usable and norm == 0 and self.recipe.method.tilt != 0:
            self._tell_flat()
        if self.recipe.optimizer.micro_batch == "auto" or self.gradients.size.is_cut:
            values["loss/batch"] = float(self.gradients.size.largest)
        if self.updater.guard.in_a_row:
            values["update_skipped"] = 1.0
            self._tell_skipped(step)
        every = self.recipe.training.validate_every
        if every and step % every == 0 and self._validation_prompts:
            values |= validation_values(self.problem, self._validation_prompts)
        record = StepRecord(step, values)
        for listener in self.listeners:
            listener.on_step(record)
        return record

    def _common_values(self, batch: Batch[E], done: BatchLosses, gradient_norm: float) -> dict[str, float]:
        """What is logged of every method."""
        times = self.clock.take()
        return {
            "loss": done.mean,
            "learning_rate": self.updater.rate(self.step),
            "gradient_norm": gradient_norm,
            **self.source.values(batch),
            **times,
            "seconds/checkpoint": self.keeper.seconds_waited(),
            **self.speed.values(batch.collected, times["seconds/total"]),
        }

    def _tell(self, notice: Notice) -> None:
        for listener in self.listeners:
            listener.on_notice(notice)

    def _tell_masked(self) -> None:
        text = (
            f"All {self.recipe.optimizer.prompts_per_step} samples of a step were masked as outliers, so nothing was "
            f"learned from them{self.masked_hint}. This notice appears once; masked_share in the metrics shows "
            "which steps."
        )
        self._tell_once(Notice("all-masked", text))

    def _tell_flat(self) -> None:
        text = (
            f"The gradient of a step was zero, so nothing was learned: {self.flat_reason}. This notice appears once; "
            "gradient_norm in the metrics shows which steps."
        )
        self._tell_once(Notice("no-gradient", text))

    def _tell_once(self, notice: Notice) -> None:
        """Say a thing that holds for many steps once; in the same words after a resume, so that the log has it once."""
        if notice.kind not in self._said:
            self._said.add(notice.kind)
            self._tell(notice)

    def _tell_skipped(self, step: int) -> None:
        guard = self.updater.guard
        text = (
            f"amsd skipped an update, because its loss or gradient is not finite ({guard.in_a_row} in a row; "
            f"the run ends after more than {guard.patience})."
        )
        self._tell(Notice("update-skipped", text, step))

    def _collect(self, samples: Sequence[Sample], passes: int, step: int) -> E:
        if not samples:
            raise RunError(
                f"There are more processes ({processes.world_size()}) than trajectories to share among them; "
                "raise optimizer.prompts_per_step or use fewer processes."
            )
        parts = in_chunks(samples, self.collection, lambda chunk: self.compute_experience(chunk, passes, step))
        return self.complete(self.experience_class.cat(parts))

    def _announce(self, phase: str) -> None:
        for listener in self.listeners:
            listener.on_phase(phase, self.step + 1)


class BufferSOCTrainer(SOCTrainer[E]):
    """Any method, with experience from a buffer that is used in several passes."""

    source_class = Buffered
