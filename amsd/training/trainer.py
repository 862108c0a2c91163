"""`SOCTrainer`: the fit loop of stochastic-optimal-control fine-tuning, for any method.

A method is a child class that says what experience is and what the loss of its items is. Where experience comes from
is a class attribute, so that a buffered variant of any method changes nothing else.
"""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from torch import Tensor

from amsd.errors import Diverged, RunError
from amsd.matching import MatchingLoss, QuantileThreshold, self_normalized_weights
from amsd.recipe import Recipe, identity
from amsd.run_directory import RunDirectory
from amsd.training import checkpoint as checkpoints
from amsd.training import processes
from amsd.training.chunks import chunk_size, in_chunks
from amsd.training.clock import PhaseClock
from amsd.training.events import CheckpointRecord, Listener, Notice, StepRecord
from amsd.training.experience import Experience, Items, Sample
from amsd.training.guard import SCALING_PATIENCE, UpdateGuard, optimizer_tensors, require_finite_weights, take_step
from amsd.training.optimization import WeightAverage, build_optimizer, learning_rate
from amsd.training.problem import ControlProblem, require_finite
from amsd.training.record import Outcome, step_values
from amsd.training.sources import Batch, ExperienceSource, OnPolicy
from amsd.training.state import load_optimizer, restore_rng, rng_state, save_optimizer
from amsd.training.validation import validation_values

_LOG = logging.getLogger(__name__)

Evaluate = Callable[[CheckpointRecord], float | None]
"""Called on every process after a checkpoint is complete; returns the score that decides which one is best."""


class SOCTrainer(ABC):
    """Fits a policy; abstract in what a trajectory leaves behind and how it is matched."""

    source_class: ClassVar[type[ExperienceSource]] = OnPolicy

    def __init__(
        self,
        problem: ControlProblem,
        run: RunDirectory,
        prompts: Sequence[str],
        accelerator: Accelerator,
        listeners: Sequence[Listener] = (),
        evaluate: Evaluate | None = None,
        validation_prompts: Sequence[str] = (),
    ) -> None:
        self.problem = problem
        self.recipe: Recipe = problem.recipe
        self.run = run
        self.accelerator = accelerator
        self.listeners = tuple(listeners) if accelerator.is_main_process else ()
        self.clock = PhaseClock(problem.device, self._announce)
        self.collection = chunk_size(self.recipe, problem.device.type != "cpu")
        self.source = self.source_class(self.recipe, prompts, self._collect)
        self.parameters = list(problem.policy.trainable.values())
        self.optimizer = accelerator.prepare(build_optimizer(self.parameters, self.recipe.optimizer))
        decay = self.recipe.training.ema_decay
        self.average = None if decay is None else WeightAverage(self.parameters, decay)
        scaled = getattr(accelerator, "scaler", None) is not None
        self.guard = UpdateGuard(max(self.recipe.optimizer.max_skipped_updates, SCALING_PATIENCE if scaled else 0))
        self.threshold = QuantileThreshold()
        self.scores = checkpoints.Scores(run)
        self.step = 0
        self._evaluate = evaluate
        self._validation_prompts = tuple(validation_prompts)

    @abstractmethod
    def compute_experience(self, samples: Sequence[Sample], passes: int, step: int) -> Experience:
        """Experience of trajectories that are collected at once, under the current policy.

        A sample's experience depends on the sample and the policy alone, not on the others. Nothing is exchanged
        between processes in here, for each may collect in as many parts as it has room for.
        """

    @abstractmethod
    def match(self, items: Items, weigh: bool) -> MatchingLoss:
        """Loss of a chunk of items, differentiable in the trained parameters; importance weights if asked for."""

    @property
    def needs_log_weights(self) -> bool:
        """Whether anything uses the importance of stored experience for the current policy."""
        buffer = self.recipe.method.buffer
        return self.source.reuses and (buffer.min_ess > 0 or buffer.importance_weighting)

    @property
    def weighs_whole_batch(self) -> bool:
        """Whether a loss's weight depends on the whole global batch: then no gradient can be taken before."""
        method = self.recipe.method
        outliers = method.per_sample_threshold_quantile >= 0 and method.outlier_threshold == "current"
        return outliers or (self.source.reuses and method.buffer.importance_weighting)

    def fit(self) -> None:
        """Train up to the recipe's number of steps, from the newest whole checkpoint of the run if there is one.

        Raises:
            RunError: a reward, an adjoint or a loss is not finite, or every checkpoint is damaged.
        """
        self._resume()
        while self.step < self.recipe.training.steps:
            with self._withdrawing(self.step):
                self._train_step(self.step + 1)
            if self._checkpoint_due():
                self._checkpoint()

    def _train_step(self, step: int) -> None:
        batch = self.source.batch(step)
        rate = learning_rate(step, self.recipe.training.steps, self.recipe.optimizer)
        outcome = self._optimize(batch, step, rate)
        self.step = step
        values = step_values(self.recipe, batch, outcome, rate, self.clock.take(), len(self.problem.steps.controlled))
        if batch.collected:
            values["collection/batch"] = float(self.collection.largest)
        if self.guard.in_a_row:
            values["update_skipped"] = 1.0
            self._tell_skipped(step)
        if self.needs_log_weights:
            self.source.feedback(values["ess"])
        every = self.recipe.training.validate_every
        if every and step % every == 0 and self._validation_prompts:
            values |= validation_values(self.problem, self._validation_prompts)
        for listener in self.listeners:
            listener.on_step(StepRecord(step, values))

    def _optimize(self, batch: Batch, step: int, rate: float) -> Outcome:
        method, settings = self.recipe.method, self.recipe.optimizer
        items = batch.experience.items(batch.rows, batch.pass_index)
        chunks = items.split(settings.micro_batch * method.timesteps_per_trajectory) if len(items) else []
        with self.clock.phase("loss"):
            self.optimizer.zero_grad()
            prepare = self._whole_batch if self.weighs_whole_batch else self._chunk_by_chunk
            matched, outliers, usable = prepare(chunks, items, step)
        with self.clock.phase("optimizer"):
            norm = self._update(rate, step, usable)
        weights = outliers * self._importance(matched.log_weights)
        return Outcome(
            loss=float((matched.loss * weights).sum() / len(weights)),
            items=matched,
            indices=self._gather_items(items.indices),
            outlier_weights=outliers,
            weighed=self.needs_log_weights,
            gradient_norm=norm,
        )

    def _chunk_by_chunk(self, chunks: Sequence[Items], items: Items, step: int) -> tuple[MatchingLoss, Tensor, bool]:
        """Gradients in one pass; the losses of the global batch, their weights as outliers, whether all are finite."""
        parts = []
        for chunk in chunks:
            part = self.match(chunk, self.needs_log_weights)
            self._backward(part.loss, self._outlier_weights(_joined([part.loss])))
            parts.append(replace(part, loss=part.loss.detach()))
        matched = self._gather_losses(parts)
        usable = self._finite(matched.loss, items, step)
        if not usable:
            return matched, torch.ones_like(matched.loss, dtype=torch.float64), False
        outliers = self._outlier_weights(matched.loss)
        self._move_threshold(matched.loss)
        return matched, outliers, True

    def _whole_batch(self, chunks: Sequence[Items], items: Items, step: int) -> tuple[MatchingLoss, Tensor, bool]:
        """The same where weights depend on the whole batch.

        With one chunk its graph is kept; with more, a pass without gradients comes first.
        """
        single = max(processes.gather([len(chunks)]) or [0]) <= 1
        with nullcontext() if single else torch.no_grad():
            parts = [self.match(chunk, self.needs_log_weights) for chunk in chunks]
        matched = self._gather_losses(parts)
        before = self._outlier_weights(matched.loss)
        if not self._finite(matched.loss, items, step):
            return matched, torch.ones_like(before), False
        self._move_threshold(matched.loss)
        outliers = before if self.recipe.method.outlier_threshold == "previous" else self._outlier_weights(matched.loss)
        weights = outliers * self._importance(matched.log_weights)
        by_trajectory = weights.view(-1, self.recipe.method.timesteps_per_trajectory)
        own = by_trajectory[processes.rank() :: processes.world_size()].flatten()
        for part, chunk, weight in zip(parts, chunks, own.split([len(c) for c in chunks]), strict=True):
            self._backward(part.loss if single else self.match(chunk, False).loss, weight)
        return matched, outliers, True

    def _backward(self, losses: Tensor, weights: Tensor) -> None:
        total = self.recipe.optimizer.prompts_per_step * self.recipe.method.timesteps_per_trajectory
        self.accelerator.backward((losses * weights.to(losses)).sum() / total)

    def _finite(self, losses: Tensor, items: Items, step: int) -> bool:
        """Whether the losses of the global batch (M,) are finite, if not ending the run where none may be left out.

        Every process judges the same values, so that none waits for one that has ended.
        """
        if bool(losses.isfinite().all()):
            return True
        if self.guard.in_a_row >= self.recipe.optimizer.max_skipped_updates:
            count = self.recipe.method.timesteps_per_trajectory
            prompts = [prompt for prompt in processes.gather(items.prompts()[::count]) for _ in range(count)]
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

    def _gather_items(self, value: Tensor) -> Tensor:
        """Values of all processes' items (M,), trajectory by trajectory, in the order that one process would have."""
        count = self.recipe.method.timesteps_per_trajectory
        return processes.gather_rows(value.view(len(value) // count, count)).flatten()

    def _gather_losses(self, parts: Sequence[MatchingLoss]) -> MatchingLoss:
        """Losses of the global batch, on the CPU and without graph."""
        names = [field.name for field in fields(MatchingLoss)]
        return MatchingLoss(
            **{name: self._gather_items(_joined([getattr(part, name) for part in parts])) for name in names}
        )

    def _outlier_weights(self, losses: Tensor) -> Tensor:
        """Weight of each loss (M,) under the threshold as it is."""
        method = self.recipe.method
        roots = losses.double().sqrt()
        if method.per_sample_threshold_quantile < 0:
            return torch.ones_like(roots)
        return self.threshold.mask(roots) if method.outliers == "mask" else self.threshold.clip(roots)

    def _move_threshold(self, losses: Tensor) -> None:
        """Take the losses of a global batch into the moving threshold."""
        quantile = self.recipe.method.per_sample_threshold_quantile
        if quantile >= 0:
            self.threshold = self.threshold.updated(losses.double().sqrt(), quantile)

    def _importance(self, log_weights: Tensor) -> Tensor:
        if not self.recipe.method.buffer.importance_weighting:
            return torch.ones_like(log_weights, dtype=torch.float64)
        return self_normalized_weights(log_weights.double())

    def _update(self, rate: float, step: int, usable: bool) -> float:
        """Make the update, or leave it out; returns the norm of the gradient. Every process decides alike."""
        processes.sum_gradients(self.parameters)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        limit = self.recipe.optimizer.gradient_clip or float("inf")
        norm = float(self.accelerator.clip_grad_norm_(self.parameters, limit)) if usable else float("nan")
        admitted = self.guard.admits(norm, step)
        if admitted or (usable and getattr(self.accelerator, "scaler", None) is not None):
            take_step(self.optimizer, step)  # what is not admitted only lowers fp16's loss scale
        if admitted:
            require_finite_weights(self.problem.policy.trainable, step, "weights")
            if self.average is not None:
                self.average.update()
        return norm

    def _collect(self, samples: Sequence[Sample], passes: int, step: int) -> Experience:
        if not samples:
            raise RunError(
                f"There are more processes ({processes.world_size()}) than trajectories to share among them; "
                "raise optimizer.prompts_per_step or lower --processes."
            )
        parts = in_chunks(samples, self.collection, lambda chunk: self.compute_experience(chunk, passes, step))
        return Experience.cat(parts)

    def _checkpoint_due(self) -> bool:
        training = self.recipe.training
        return self.step % training.checkpoint_every == 0 or self.step == training.steps

    def _checkpoint(self) -> None:
        self._announce("checkpoint")
        policy = self.problem.policy
        self._require_finite_state()

        def save_weights(folder: Path) -> None:
            with self._averaged():
                policy.save(folder)

        path = checkpoints.write_checkpoint(self.run, self.step, save_weights, self._save_state, identity(self.recipe))
        record = CheckpointRecord(self.step, path, checkpoints.weights_sha256(path))
        for listener in self.listeners:
            listener.on_checkpoint(record)
        self._score(record)

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
            checkpoints.retain(self.run, self.recipe.training.keep)

    def _save_state(self, folder: Path) -> None:
        from safetensors.torch import save_file

        self.source.save(folder)
        (folder / f"rng-{processes.rank():05d}.json").write_text(json.dumps(rng_state()), encoding="utf-8")
        if processes.rank() != 0:
            return
        save_optimizer(self.optimizer.optimizer, folder)
        state: dict[str, Any] = {
            "step": self.step,
            "threshold": {"average": self.threshold.average, "batches": self.threshold.batches},
            "skipped_in_a_row": self.guard.in_a_row,
        }
        if self.average is not None:
            # `unet/` or the adapter file holds the average, so the trained values themselves go here.
            names = list(self.problem.policy.trainable)
            save_file(
                {name: value.detach().cpu().contiguous() for name, value in self.problem.policy.trainable.items()},
                folder / "parameters.safetensors",
            )
            shadow = dict(zip(names, (value.cpu().contiguous() for value in self.average.shadow), strict=True))
            save_file(shadow, folder / "average.safetensors")
            state["average_updates"] = self.average.updates
        scaler = getattr(self.accelerator, "scaler", None)
        if scaler is not None:
            state["scaler"] = scaler.state_dict()
        (folder / "trainer.json").write_text(json.dumps(state), encoding="utf-8")

    def _resume(self) -> None:
        path = checkpoints.newest_whole(self.run)
        self._barrier()
        if path is None:
            return
        folder = path / "state"
        state = json.loads((folder / "trainer.json").read_text(encoding="utf-8"))
        self.step = state["step"]
        self.threshold = QuantileThreshold(**state["threshold"])
        self.guard.in_a_row = state.get("skipped_in_a_row", 0)
        self.problem.policy.load(path)
        load_optimizer(self.optimizer.optimizer, folder)
        if self.average is not None:
            self._restore_average(folder, state["average_updates"])
        if "scaler" in state and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.source.restore(folder, self.problem.encode)
        own = folder / f"rng-{processes.rank():05d}.json"
        if own.is_file():
            restore_rng(json.loads(own.read_text(encoding="utf-8")))
        if self.accelerator.is_main_process:
            checkpoints.discard_after(self.run, self.step)
            self.scores.drop_after(self.step)
            self.run.point("latest", self.step)
        self._barrier()
        if self.step not in self.scores.read():  # stopped between saving and evaluating
            self._score(CheckpointRecord(self.step, path, checkpoints.weights_sha256(path)))

    def _restore_average(self, folder: Path, updates: int) -> None:
        from safetensors.torch import load_file

        assert self.average is not None
        trained, shadow = load_file(folder / "parameters.safetensors"), load_file(folder / "average.safetensors")
        for name, parameter in self.problem.policy.trainable.items():
            parameter.data.copy_(trained[name])
        self.average.restore([shadow[name] for name in self.problem.policy.trainable], updates)

    def _averaged(self) -> AbstractContextManager[None]:
        """The parameters hold the average inside the block, where there is one."""
        return nullcontext() if self.average is None else self.average.applied()

    def _announce(self, phase: str) -> None:
        for listener in self.listeners:
            listener.on_phase(phase, self.step + 1)

    def _barrier(self) -> None:
        self.accelerator.wait_for_everyone()


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.detach().float().cpu() for part in parts]) if parts else torch.zeros(0)
