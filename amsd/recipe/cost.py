"""What a training run costs, before it runs (docs/method.md section 7): the one place that counts UNet evaluations."""

from __future__ import annotations

from dataclasses import dataclass

from amsd.recipe.schema import Recipe
from amsd.strata import expected_smallest_index, stored_counts


@dataclass(frozen=True)
class Cost:
    """UNet forward-equivalents (F) per trajectory of one optimizer step; one F is one forward pass for one image.

    A product with the Jacobian costs two F, a loss step three (forward, and backward twice as much). Gradient
    checkpointing, which computes forward passes again, is not counted.
    """

    sampling: float
    adjoint: float
    base: float
    """eps_0 at loss steps where the adjoint's own pass has not computed it."""
    loss: float
    mask: float
    """Loss without gradients first, where weights need the whole batch and the batch has several chunks."""
    weights: float
    """Predictions for the importance weights of a buffer that the loss does not make."""

    @property
    def total(self) -> float:
        """Everything."""
        return self.sampling + self.adjoint + self.base + self.loss + self.mask + self.weights


def cost_per_trajectory(recipe: Recipe, processes: int = 1) -> Cost:
    """Expected cost of one trajectory in one optimizer step; a buffer shares sampling and adjoint among its passes.

    A buffer that is refreshed early (`min_ess`) costs more than this.
    """
    steps, count = recipe.schedule.num_inference_steps, recipe.method.timesteps_per_trajectory
    available = steps - (recipe.schedule.final_step == "noiseless")
    buffered = recipe.method.name == "buffer-am"
    passes = recipe.method.buffer.passes if buffered else 1
    guidance = recipe.guidance
    in_sampler = 2 if guidance.guidance_scale != 1 else 1
    in_adjoint = 2 if guidance.guidance_in_adjoint_computation else 1
    in_control = 2 if guidance.guidance_in_control_computation else 1
    shift = 1 if recipe.method.adjoint_at == "next" else 0
    products = steps - shift - expected_smallest_index(available, count, passes)
    # The recursion to a_{k+1} ends one step before the smallest loss step k, which therefore lacks its eps_0.
    stored = sum(number for _, number in stored_counts(available, count, passes))
    missing = shift if in_adjoint == in_control else stored
    return Cost(
        sampling=steps * in_sampler / passes,
        adjoint=2 * products * in_adjoint / passes,
        base=missing * in_control / passes,
        loss=3 * count * in_control,
        mask=count * in_control if _weighs_whole_batch(recipe) and _chunks(recipe, processes) > 1 else 0,
        weights=_weights(recipe) * count * in_sampler,
    )


def _weighs_whole_batch(recipe: Recipe) -> bool:
    """Whether a loss's weight depends on the other losses of its batch."""
    method = recipe.method
    outliers = method.per_sample_threshold_quantile >= 0 and method.outlier_threshold == "current"
    return outliers or (method.name == "buffer-am" and method.buffer.importance_weighting)


def _weights(recipe: Recipe) -> float:
    """Share of the loss steps that need a prediction of their own for importance weights."""
    buffer, guidance = recipe.method.buffer, recipe.guidance
    if recipe.method.name != "buffer-am" or not (buffer.min_ess > 0 or buffer.importance_weighting):
        return 0
    alike = guidance.guidance_scale == 1 or guidance.guidance_in_control_computation
    return recipe.prompts.dropout if alike else 1


def forwards_per_step(recipe: Recipe, processes: int = 1) -> float:
    """UNet forward-equivalents of one optimizer step, over all processes."""
    return recipe.optimizer.prompts_per_step * cost_per_trajectory(recipe, processes).total


def training_cost(recipe: Recipe, processes: int = 1) -> float:
    """UNet forward-equivalents of a whole training, without evaluation and validation."""
    return recipe.training.steps * forwards_per_step(recipe, processes)


def _chunks(recipe: Recipe, processes: int) -> int:
    """Chunks that the largest share of an optimizer step's trajectories is matched in."""
    local = -(-recipe.optimizer.prompts_per_step // processes)
    return -(-local // recipe.optimizer.micro_batch)
