"""Adjoint Matching as a recipe sees it: `am` and `buffer-am`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field

from amsd.recipe.errors import Problem
from amsd.recipe.methods.base import (
    BufferedSection,
    Cost,
    StratifiedSection,
    TiltedSection,
    chunks_per_step,
    controlled_steps,
    sampled_rows,
)
from amsd.recipe.section import Fraction, Section
from amsd.recipe.tables import Tables
from amsd.strata import expected_smallest_index, stored_counts


class Smoothing(Section):
    """Reward gradient averaged over perturbed terminal latents (docs/method.md section 4)."""

    samples: int = Field(default=1, ge=1, le=10_000)
    """Draws per latent; 1 with `noise_std = 0` is the plain gradient."""
    noise_std: float = Field(default=0.0, ge=0)
    """Standard deviation of the perturbation of the latents."""
    clip_quantile: Fraction | None = None
    """Each draw's gradient norm is clipped to this quantile of its sample's draws; unset: no clipping."""


class AdjointMatching(StratifiedSection, TiltedSection):
    """Adjoint Matching, on-policy."""

    label: ClassVar[str] = "Adjoint Matching"
    trainer: ClassVar[str] = "amsd.training.methods.adjoint_matching:AMTrainer"
    as_before: ClassVar[dict[str, Any]] = {
        "outliers": "mask", "outlier_threshold": "current", "step_weights": "control",
    }  # fmt: skip

    name: Literal["am"] = "am"
    adjoint_at: Literal["next", "current"] = "next"
    """Which adjoint the control is matched to: a_{k+1} (unbiased) or a_k (the reference)."""
    per_sample_threshold_quantile: float = Field(default=0.9, le=1)
    """Samples whose sqrt(loss) lies above the moving quantile are outliers; negative is off (the reference's key)."""
    outliers: Literal["mask", "clip"] = "mask"
    """What happens to outliers: `mask` leaves them out (the reference), `clip` limits the size of their gradient."""
    outlier_threshold: Literal["previous", "current"] = "previous"
    """Batches that the moving threshold averages: those before this one (`previous`), or this one too (`current`, the
    reference; with several micro-batches in a batch every loss is then computed twice)."""
    step_weights: Literal["control", "balanced", "prediction"] = "control"
    """Weight of each step in the loss. `control` is the paper's loss of controls; with it, steps of high noise learn
    slowest. `prediction` divides it by c_k^2, so that all steps have the same influence on the prediction. `balanced`
    divides it by |c_k|. The fixed point is the same."""
    smoothing: Smoothing = Smoothing()

    @property
    def step_power(self) -> int:
        """Power of |c_k| that the loss of a step is divided by."""
        return ("control", "balanced", "prediction").index(self.step_weights)

    def adjoint_rows(self, recipe: Tables) -> int:
        """One, or two where the base drift is guided."""
        return sampled_rows(recipe) if recipe.guidance.guidance_in_adjoint_computation else 1

    @property
    def weighs_by_importance(self) -> bool:
        """Whether importance weights enter the loss."""
        return False

    @property
    def needs_log_weights(self) -> bool:
        """Whether anything uses the importance of stored experience for the current policy."""
        return False

    @property
    def weighs_whole_batch(self) -> bool:
        """Whether a loss's weight depends on the other losses of its batch."""
        outliers = self.per_sample_threshold_quantile >= 0 and self.outlier_threshold == "current"
        return outliers or self.weighs_by_importance

    def problems(self, recipe: Tables) -> Iterator[Problem]:
        """No noise, too few steps, draws that are all the same."""
        steps = recipe.schedule.num_inference_steps
        if recipe.schedule.eta == 0:
            yield Problem(
                "schedule.eta", "must be above 0 for training: without noise there is no control",
                0.0, "Use 1.0 (memoryless); eta = 0 belongs in evaluation.eta.",
            )  # fmt: skip
        elif self.timesteps_per_trajectory > controlled_steps(recipe):
            yield Problem(
                "method.timesteps_per_trajectory",
                f"at most {controlled_steps(recipe)} steps of {steps} carry a control "
                f"(final_step = {recipe.schedule.final_step!r})",
                self.timesteps_per_trajectory,
            )
        if self.smoothing.samples > 1 and self.smoothing.noise_std == 0:
            yield Problem("method.smoothing.noise_std", "several draws without noise are all the same", 0.0)
        yield from super().problems(recipe)

    def advice(self, recipe: Tables) -> Iterator[Problem]:
        """A sampler that remembers its start, a mode of guidance without a name."""
        yield from super().advice(recipe)
        if 0 < recipe.schedule.eta < 1:
            yield Problem(
                "schedule.eta",
                "eta below 1 is not memoryless: fine-tuning converges to a biased distribution "
                "(Adjoint Matching paper, Theorem 1)", recipe.schedule.eta,
                "Use 1.0 unless the bias is what you study.",
            )  # fmt: skip
        guidance = recipe.guidance
        if guidance.guidance_in_adjoint_computation != guidance.guidance_in_control_computation:
            yield Problem(
                "guidance.guidance_in_control_computation",
                "the adjoint and the control are guided differently; no theory covers this mode",
                guidance.guidance_in_control_computation,
            )

    def canonical(self) -> dict[str, Any]:
        """As in any method; without outliers their keys are inert."""
        if self.per_sample_threshold_quantile < 0:
            inert = {"outliers": "mask", "outlier_threshold": "current"}
            return super(AdjointMatching, self.model_copy(update=inert)).canonical()
        return super().canonical()

    def cost(self, recipe: Tables, processes: int) -> Cost:
        """Expected cost; a buffer shares sampling and adjoint among its passes, and costs more if refreshed early."""
        steps, count, passes = recipe.schedule.num_inference_steps, self.timesteps_per_trajectory, self.passes
        available = controlled_steps(recipe)
        guidance = recipe.guidance
        in_adjoint = 2 if guidance.guidance_in_adjoint_computation else 1
        in_control = 2 if guidance.guidance_in_control_computation else 1
        shift = 1 if self.adjoint_at == "next" else 0
        products = steps - shift - expected_smallest_index(available, count, passes)
        # The recursion to a_{k+1} ends one step before the smallest loss step k, which therefore lacks its eps_0.
        stored = sum(number for _, number in stored_counts(available, count, passes))
        missing = shift if in_adjoint == in_control else stored
        twice = self.weighs_whole_batch and chunks_per_step(recipe, processes) > 1
        alike = guidance.guidance_scale == 1 or guidance.guidance_in_control_computation
        other = (recipe.prompts.dropout if alike else 1) if self.needs_log_weights else 0
        return Cost(
            {
                "sampling": steps * sampled_rows(recipe) / passes,
                "adjoint": 2 * products * in_adjoint / passes,
                # eps_0 at loss steps where the adjoint's own pass has not computed it.
                "base": missing * in_control / passes,
                "loss": 3 * count * in_control,
                # Losses without gradients first, where weights need the whole batch and it has several chunks.
                "mask": count * in_control if twice else 0,
                # Predictions for the importance weights that the loss does not make.
                "weights": other * count * sampled_rows(recipe),
            }
        )


class BufferedAdjointMatching(BufferedSection, AdjointMatching):
    """Adjoint Matching from a buffer: each trajectory and its adjoint serve several optimizer steps."""

    label: ClassVar[str] = "Adjoint Matching from a buffer"
    trainer: ClassVar[str] = "amsd.training.methods.adjoint_matching:BufferAMTrainer"

    name: Literal["buffer-am"] = "buffer-am"  # type: ignore[assignment]

    @property
    def passes(self) -> int:
        """How often a trajectory is used."""
        return self.buffer.passes

    @property
    def weighs_by_importance(self) -> bool:
        """As the buffer says."""
        return self.buffer.importance_weighting

    @property
    def needs_log_weights(self) -> bool:
        """For the weighting, and for the effective sample size that a buffer is refreshed by."""
        return self.buffer.min_ess > 0 or self.weighs_by_importance
