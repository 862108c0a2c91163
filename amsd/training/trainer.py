"""`SOCTrainer`: the fit loop of reward fine-tuning, for any method.

A method is a child class that says what experience is, what the loss of its items is and what is logged of them
(docs/extending.md). Where experience comes from is a class attribute, so that a buffered variant of any method changes
nothing else.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic

import torch
from accelerate import Accelerator
from torch import Tensor

from amsd.ends import AnnouncedEnd, Ends
from amsd.errors import Diverged, RunError
from amsd.files import write_text
from amsd.recipe import Recipe, dump_toml, identity
from amsd.run_directory import RunDirectory
from amsd.training import checkpoint as checkpoints
from amsd.training import processes
from amsd.training.chunks import chunk_size, in_chunks
from amsd.training.clock import PhaseClock
from amsd.training.events import CheckpointRecord, Listener, Notice, StepRecord
from amsd.training.experience import E, ItemLosses, Sample
from amsd.training.guard import SCALING_PATIENCE, UpdateGuard, optimizer_tensors, require_finite_weights, take_step
from amsd.training.optimization import WeightAverage, build_optimizer, learning_rate
from amsd.training.persistence import load_training, save_training
from amsd.training.problem import ControlProblem, require_finite
from amsd.training.sources import Batch, Buffered, ExperienceSource, OnPolicy
from amsd.training.state import restore_rng, rng_state
from amsd.training.validation import validation_values

_LOG = logging.getLogger(__name__)

Evaluate = Callable[[CheckpointRecord], float | None]
"""Called on every process after a checkpoint is complete; returns the score that decides which one is best."""


class SOCTrainer(ABC, Generic[E]):
    """Fits a policy; abstract in what a trajectory leaves behind, its loss, and what is logged."""

    experience_class: type[E]
    """What `compute_experience` returns."""
    source_class: ClassVar[type[ExperienceSource[Any]]] = OnPolicy
    only_losses = False
    """True while losses are computed a second time, for their gradient alone."""

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
    ) -> None:
        self.problem = problem
        self.recipe: Recipe = problem.recipe
        self.run = run
        self.accelerator = accelerator
        self.listeners = tuple(listeners) if accelerator.is_main_process else ()
        self.clock = PhaseClock(problem.device, self._announce)
        self.collection = chunk_size(self.recipe, problem.device.type != "cpu")
        self.source: ExperienceSource[E] = self.source_class(self.recipe, prompts, self._collect, self.experience_class)
        self.parameters = list(problem.policy.trainable.values())
        processes.share_from_main(self.parameters)  # adapters begin at random
        self.optimizer = accelerator.prepare(build_optimizer(self.parameters, self.recipe.optimizer))
        decay = self.recipe.training.ema_decay
        self.average = None if decay is None else WeightAverage(self.parameters, decay)
        scaled = getattr(accelerator, "scaler", None) is not None
        self.guard = UpdateGuard(max(self.recipe.optimizer.max_skipped_updates, SCALING_PATIENCE if scaled else 0))
        self.scores = checkpoints.Scores(run)
        self.step = 0
        self._evaluate = evaluate
        self._validation_prompts = tuple(validation_prompts)
        self._ends = ends or Ends()

    @abstractmethod
    def compute_experience(self, samples: Sequence[Sample], passes: int, step: int) -> E:
        """Experience of trajectories that are collected at once, under the current policy.

        A sample's experience depends on the sample and the policy alone, not on the others. Nothing is exchanged
        between processes in here, for each may collect in as many parts as it has room for.
        """

    @abstractmethod
    def losses(self, experience: E, rows: Tensor, pass_index: int) -> ItemLosses:
        """Losses of some trajectories, the `rows` (R,) of an experience, in one of its passes.

        R times the section's `items_per_trajectory` losses, row by row, differentiable in the trained parameters.
        """

    @abstractmethod
    def step_values(self, batch: Batch[E], items: ItemLosses) -> dict[str, float]:
        """What is logged of a step: flat names to values over the global batch.

        `items` are those of the global batch, `batch` is this process's part; every process is here, so that values
        can be gathered (`amsd.training.record`).
        """

    def complete(self, experience: E) -> E:
        """The experience of a whole collection, once it is there; processes may exchange numbers in here."""
        return experience

    @property
    def weighs_whole_batch(self) -> bool:
        """Whether `weights` needs the items of the global batch: then no gradient can be taken before."""
        return False

    def weights(self, items: ItemLosses) -> Tensor:
        """Weight of each loss (M,) of a chunk, or of the global batch; changes nothing."""
        return torch.ones(len(items.loss), dtype=torch.float64)

    def after_step(self, items: ItemLosses) -> None:
        """Told after each update and its logged values: the items of the global batch, all of them finite."""

    def remarks(self) -> Iterator[Notice]:
        """What a user should know of the problem before the first step."""
        yield from ()

    def state(self) -> dict[str, Any]:
        """What the method must not forget, as JSON; the names are its own (`threshold`)."""
        return {}

    def state_tensors(self) -> dict[str, Tensor]:
        """What the method must not forget, as tensors."""
        return {}

    def restore(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `state` and `state_tensors` returned."""

    def fit(self) -> None:
        """Train up to the recipe's number of steps, from the newest whole checkpoint of the run if there is one.

        Raises:
            RunError: a reward, an adjoint or a loss is not finite, or every checkpoint is damaged.
            AnnouncedEnd: a signal asked for it; the newest step has a checkpoint.
        """
        self._resume()
        while self.step < self.recipe.training.steps:
            with self._dropping(), self._withdrawing(self.step):
                self._train_step(self.step + 1)
            if self._checkpoint_due():
                record = self._checkpoint()
                self._end_if_asked()
                self._score(record)
            self._end_if_asked()

    def _end_if_asked(self) -> None:
        """End between two steps if a signal has asked any process for it; all of them agree on the step."""
        number = max(processes.gather([self._ends.number or 0]))
        if not number:
            return
        with self._ends.held():
            if self.step and self.run.pointer("latest") != self.run.checkpoint(self.step):
                self._checkpoint()
        raise AnnouncedEnd(number)

    @contextmanager
    def _dropping(self) -> Iterator[None]:
        """A step, which a first signal lets finish; after a second one all is as it was before the step."""
        state, tensors = self.state(), {name: value.clone() for name, value in self.state_tensors().items()}
        before = (self.guard.in_a_row, rng_state(), self.source.mark())
        try:
            with self._ends.finishing():
                yield
        except AnnouncedEnd:
            self.restore(state, tensors)
            self.guard.in_a_row, rng, mark = before
            restore_rng(rng)
            self.source.roll_back(mark)
            self._end_if_asked()

    def _train_step(self, step: int) -> None:
        batch = self.source.batch(step)
        rate = learning_rate(step, self.recipe.training.steps, self.recipe.optimizer)
        done = self._optimize(batch, step, rate)
        self.step = step
        values = self.step_values(batch, done.items) | self._step_values(batch, done, rate)
        if done.usable:
            self.after_step(done.items)
        if batch.collected:
            values["collection/batch"] = float(self.collection.largest)
        if self.guard.in_a_row:
            values["update_skipped"] = 1.0
            self._tell_skipped(step)
        every = self.recipe.training.validate_every
        if every and step % every == 0 and self._validation_prompts:
            values |= validation_values(self.problem, self._validation_prompts)
        for listener in self.listeners:
            listener.on_step(StepRecord(step, values))

    def _step_values(self, batch: Batch[E], done: _Update, rate: float) -> dict[str, float]:
        """What is logged of every method."""
        times = self.clock.take()
        return {
            "loss": done.loss,
            "learning_rate": rate,
            "gradient_norm": done.gradient_norm,
            **self.source.values(batch),
            **times,
            "images_per_second": self.recipe.optimizer.prompts_per_step / max(times["seconds/total"], 1e-9),
        }

    def _optimize(self, batch: Batch[E], step: int, rate: float) -> _Update:
        chunks = batch.rows.split(self.recipe.optimizer.micro_batch) if len(batch.rows) else ()
        with self.clock.phase("loss"):
            self.optimizer.zero_grad()
            items, weights, usable = (self._whole_batch if self.weighs_whole_batch else self._in_one_pass)(
                batch, chunks, step
            )
        with self.clock.phase("optimizer"):
            norm = self._update(rate, step, usable)
        return _Update(items, float((items.loss * weights).sum() / len(weights)), norm, usable)

    def _in_one_pass(self, batch: Batch[E], chunks: Sequence[Tensor], step: int) -> tuple[ItemLosses, Tensor, bool]:
        """Gradients chunk by chunk; the items of the global batch, their weights, and whether all are finite."""
        parts = []
        for rows in chunks:
            part = self.losses(batch.experience, rows, batch.pass_index)
            self._backward(part.loss, self.weights(part))
            parts.append(ItemLosses(part.loss.detach(), part.logged))
        items = self._gathered(parts)
        usable = self._finite(items.loss, batch, step)
        return items, self.weights(items) if usable else torch.ones_like(items.loss), usable

    def _whole_batch(self, batch: Batch[E], chunks: Sequence[Tensor], step: int) -> tuple[ItemLosses, Tensor, bool]:
        """The same where weights depend on the whole batch.

        With one chunk its graph is kept; with more, a pass without gradients comes first.
        """
        single = max(processes.gather([len(chunks)]) or [0]) <= 1
        with nullcontext() if single else torch.no_grad():
            parts = [self.losses(batch.experience, rows, batch.pass_index) for rows in chunks]
        items = self._gathered(parts)
        if not self._finite(items.loss, batch, step):
            return items, torch.ones_like(items.loss), False
        weights = self.weights(items)
        by_trajectory = weights.view(-1, self.recipe.method.items_per_trajectory)
        own = by_trajectory[processes.rank() :: processes.world_size()].flatten()
        self.only_losses = not single
        for part, rows, weight in zip(parts, chunks, own.split([len(part.loss) for part in parts]), strict=True):
            again = part if single else self.losses(batch.experience, rows, batch.pass_index)
            self._backward(again.loss, weight)
        self.only_losses = False
        return items, weights, True

    def _backward(self, losses: Tensor, weights: Tensor) -> None:
        total = self.recipe.optimizer.prompts_per_step * self.recipe.method.items_per_trajectory
        self.accelerator.backward((losses * weights.to(losses.dtype).to(losses.device)).sum() / total)

    def _gathered(self, parts: Sequence[ItemLosses]) -> ItemLosses:
        """Items of all processes, trajectory by trajectory, in the order that one process would have; on the CPU."""
        count = self.recipe.method.items_per_trajectory
        rows: list[dict[str, list[float]]] = []
        for part in parts:
            values = {"": part.loss.detach().float(), **part.logged}
            table = {name: value.view(-1, count).tolist() for name, value in values.items()}
            rows += [{name: table[name][row] for name in table} for row in range(len(table[""]))]
        everything = processes.gather(rows)
        joined = {name: torch.tensor([row[name] for row in everything]).flatten() for name in everything[0]}
        return ItemLosses(joined.pop(""), joined)

    def _finite(self, losses: Tensor, batch: Batch[E], step: int) -> bool:
        """Whether the losses of the global batch (M,) are finite, if not ending the run where none may be left out.

        Every process judges the same values, so that none waits for one that has ended.
        """
        if bool(losses.isfinite().all()):
            return True
        if self.guard.in_a_row >= self.recipe.optimizer.max_skipped_updates:
            count = self.recipe.method.items_per_trajectory
            own = [batch.experience.prompts[row] for row in batch.rows.tolist()]
            prompts = [prompt for prompt in processes.gather(own) for _ in range(count)]
            require_finite(losses, "loss", step, "loss", prompts)
        return False

    def _tell_skipped(self, step: int) -> None:
        notice = Notice(
            "update-skipped",
            f"The update was left out, because its loss or gradient is not finite ({self.guard.in_a_row} in a row; "
            f"more than {self.guard.patience} end the run).",
            step,
        )
        for listener in self.listeners:
            listener.on_notice(notice)

    def _update(self, rate: float, step: int, usable: bool) -> float:
        """Make the update, or leave it out; returns the norm of the gradient. Every process decides alike."""
        processes.sum_gradients(self.parameters)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        limit = self.recipe.optimizer.gradient_clip or float("inf")
        norm = float(self.accelerator.clip_grad_norm_(self.parameters, limit)) if usable else float("nan")
        admitted = self.guard.admits(norm, step)
        self._ends.hold()  # from here until the step is logged: weights, average and log belong together
        if admitted or (usable and getattr(self.accelerator, "scaler", None) is not None):
            take_step(self.optimizer, step)  # what is not admitted only lowers fp16's loss scale
        if admitted:
            require_finite_weights(self.problem.policy.trainable, step, "weights")
            if self.average is not None:
                self.average.update()
        return norm

    def _collect(self, samples: Sequence[Sample], passes: int, step: int) -> E:
        if not samples:
            raise RunError(
                f"There are more processes ({processes.world_size()}) than trajectories to share among them; "
                "raise optimizer.prompts_per_step or lower --processes."
            )
        parts = in_chunks(samples, self.collection, lambda chunk: self.compute_experience(chunk, passes, step))
        return self.complete(self.experience_class.cat(parts))

    def _checkpoint_due(self) -> bool:
        training = self.recipe.training
        return self.step % training.checkpoint_every == 0 or self.step == training.steps

    def _checkpoint(self) -> CheckpointRecord:
        """Write the checkpoint of this step, which no signal interrupts."""
        with self._ends.held():
            return self._write_checkpoint()

    def _write_checkpoint(self) -> CheckpointRecord:
        self._announce("checkpoint")
        policy = self.problem.policy
        self._require_finite_state()
        if self.accelerator.is_main_process and not self.run.recipe.is_file():  # a trainer that was built by hand
            write_text(self.run.recipe, dump_toml(self.recipe))

        def save_weights(folder: Path) -> None:
            with self._averaged():
                policy.save(folder)

        path = checkpoints.write_checkpoint(
            self.run, self.step, save_weights, lambda folder: save_training(self, folder), identity(self.recipe)
        )
        record = CheckpointRecord(self.step, path, checkpoints.weights_sha256(path))
        for listener in self.listeners:
            listener.on_checkpoint(record)
        return record

    def _require_finite_state(self) -> None:
        """Check everything that a checkpoint takes along."""
        require_finite_weights(self.problem.policy.trainable, self.step, "weights")
        require_finite_weights(dict(optimizer_tensors(self.optimizer.optimizer)), self.step, "optimizer's moments")
        if self.average is not None:
            averaged = dict(zip(self.problem.policy.trainable, self.average.shadow, strict=True))
            require_finite_weights(averaged, self.step, "averaged weights")

    @contextmanager
    def _withdrawing(self, step: int) -> Iterator[None]:
        """Take the checkpoint of `step` back if its weights turn out to draw samples that are not finite."""
        try:
            yield
        except Diverged as error:
            if not checkpoints.withdraw(self.run, step):
                raise
            left = self.run.pointer("latest")
            kept = "no checkpoint is left" if left is None else f"the newest is now {left.name}"
            raise Diverged(f"{error}\nThe checkpoint of step {step} was taken back; {kept}.") from error

    def _score(self, record: CheckpointRecord) -> None:
        if self._evaluate is not None:
            self._announce("evaluation")
            with self._withdrawing(record.step), self._averaged():
                score = self._evaluate(record)
            if score is not None and self.accelerator.is_main_process:
                self.scores.add(record.step, score)
        if self.accelerator.is_main_process:
            checkpoints.retain(self.run, self.recipe.training.keep, self.recipe.training.checkpoint_every)

    def _resume(self) -> None:
        path = checkpoints.newest_whole(self.run)
        self._barrier()
        if path is None:
            return
        self.problem.policy.load(path)
        load_training(self, path / "state")
        if self.accelerator.is_main_process:
            checkpoints.discard_after(self.run, self.step)
            self.scores.drop_after(self.step)
            self.run.point("latest", self.step)
        self._barrier()
        if self._checkpoint_due() and self.step not in self.scores.read():  # stopped between saving and evaluating
            self._score(CheckpointRecord(self.step, path, checkpoints.weights_sha256(path)))

    def _averaged(self) -> AbstractContextManager[None]:
        """The parameters hold the average inside the block, where there is one."""
        return nullcontext() if self.average is None else self.average.applied()

    def _announce(self, phase: str) -> None:
        for listener in self.listeners:
            listener.on_phase(phase, self.step + 1)

    def _barrier(self) -> None:
        self.accelerator.wait_for_everyone()


class BufferSOCTrainer(SOCTrainer[E]):
    """Any method, with experience from a buffer that is used in several passes."""

    source_class = Buffered


@dataclass(frozen=True)
class _Update:
    """What one optimizer step did."""

    items: ItemLosses
    """Of the global batch, on the CPU."""
    loss: float
    gradient_norm: float
    usable: bool
    """Whether every loss is finite."""
