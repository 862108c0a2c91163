"""The update of one optimizer step: what changes the trained parameters, and what keeps the change finite."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from accelerate import Accelerator

from amsd.diffusion.sharding import whole
from amsd.ends import Ends
from amsd.training import processes
from amsd.training.guard import SCALING_PATIENCE, UpdateGuard, optimizer_tensors, require_finite_weights, take_step
from amsd.training.optimization import WeightAverage, build_optimizer, learning_rate
from amsd.training.problem import ControlProblem


class Updater:
    """Optimizer, learning rate, weight average and guard of the trained parameters."""

    def __init__(self, problem: ControlProblem, accelerator: Accelerator, ends: Ends) -> None:
        self.accelerator = accelerator
        self._recipe = problem.recipe
        self._policy = problem.policy
        self._ends = ends
        self.parameters = list(problem.policy.trainable.values())
        processes.share_from_main(self.parameters)  # adapters begin at random
        settings = problem.recipe.optimizer
        self.optimizer = accelerator.prepare_optimizer(build_optimizer(self.parameters, settings))
        decay = problem.recipe.training.ema_decay
        self.average = None if decay is None else WeightAverage(self.parameters, decay)
        self._scaled = getattr(accelerator, "scaler", None) is not None
        self.guard = UpdateGuard(max(settings.max_skipped_updates, SCALING_PATIENCE if self._scaled else 0))

    def rate(self, step: int) -> float:
        """Learning rate of optimizer step `step`, from 1."""
        return learning_rate(step, self._recipe.training.steps, self._recipe.optimizer)

    def make(self, step: int, usable: bool) -> float:
        """Make the update, or leave it out; returns the norm of the gradient. Every process decides alike.

        Args:
            step: optimizer step, from 1.
            usable: whether every loss is finite, so that the parameters hold a gradient.

        Raises:
            RunError: the gradient or the new weights are not finite, and no more updates may be left out.
        """
        processes.sum_gradients(self.parameters)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step)
        limit = self._recipe.optimizer.gradient_clip or float("inf")
        norm = float(whole(self.accelerator.clip_grad_norm_(self.parameters, limit))) if usable else float("nan")
        admitted = self.guard.admits(norm, step)
        self._ends.hold()  # from here until the step is logged: weights, average and log belong together
        if admitted or (usable and self._scaled):
            take_step(self.optimizer, step)  # what is not admitted only lowers fp16's loss scale
        if admitted:
            require_finite_weights(self._policy.trainable, step, "weights")
            if self.average is not None:
                self.average.update()
        return norm

    def require_finite(self, step: int) -> None:
        """Check everything that a checkpoint takes along.

        Raises:
            RunError: the weights, the optimizer's moments or the average are not finite.
        """
        require_finite_weights(self._policy.trainable, step, "weights")
        require_finite_weights(dict(optimizer_tensors(self.optimizer.optimizer)), step, "optimizer's moments")
        if self.average is not None:
            averaged = dict(zip(self._policy.trainable, self.average.shadow, strict=True))
            require_finite_weights(averaged, step, "averaged weights")

    def averaged(self) -> AbstractContextManager[None]:
        """The parameters hold the average inside the block, where there is one."""
        return nullcontext() if self.average is None else self.average.applied()
