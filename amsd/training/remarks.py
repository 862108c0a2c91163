"""What a user should know of a sampler before anything is trained with it."""

from __future__ import annotations

from collections.abc import Iterator

from amsd.diffusion.steps import AffineSteps
from amsd.training.events import Notice

MEMORY_LIMIT = 0.2
"""Correlation of terminal latents above which the bias of fine-tuning is no longer small (docs/method.md section 1)."""

STIFF = 10.0
"""Control scale |c_k|, also against that of the other steps, above which one step of the sampler dominates the loss and
the KL (docs/method.md section 10)."""


def clamped_noise(steps: AffineSteps, eta: float) -> Iterator[Notice]:
    """Steps whose noise is clamped."""
    if steps.clamped:
        which = f"{len(steps.clamped)} of the {len(steps)} steps"
        yield Notice("clamped-noise", f"eta = {eta:g} is too large for {which}. There amsd limits the noise.")


def stiff_step(steps: AffineSteps, what: str) -> Iterator[Notice]:
    """A step of a flow path that takes almost all of the noise away, so that it dominates `what`."""
    scale = steps.control_scale[steps.controlled].abs()
    if not len(scale) or steps.prediction_type != "flow":
        return
    largest = float(scale.max())
    if largest > STIFF * max(1.0, float(scale.median())):
        number = int(steps.controlled[scale.argmax()])
        text = (
            f"Step {number} of {len(steps)} adds so little noise ({float(steps.sigma[number]):.2g}) that a control "
            f"costs {largest:.0f} times the change that it makes. This step dominates {what}. Set "
            "schedule.shift_terminal to 0.1 or 0.2: the grid then ends before it (docs/method.md section 10)."
        )
        yield Notice("stiff-step", text, values={"control_scale": largest})


def not_memoryless(steps: AffineSteps) -> Iterator[Notice]:
    """A sampler that remembers its initial noise."""
    memory = unit_variance_correlation(steps)
    if memory > MEMORY_LIMIT:
        text = (
            f"The sampler remembers its initial noise (correlation {memory:.2f} for unit-variance data), so "
            "training misses a part of its target. Use schedule.eta = 1, or more steps."
        )
        yield Notice("not-memoryless", text, values={"correlation": memory})


def unit_variance_correlation(steps: AffineSteps) -> float:
    """Correlation of terminal latents that share their initial noise, for data N(0, I), in closed form.

    The exact prediction is then linear in x.
    """
    slope = steps.A + steps.B * steps.unit_variance_slope
    memory, variance = 1.0, 1.0
    for k in range(len(steps)):
        memory *= float(slope[k])
        variance = float(slope[k] ** 2) * variance + float(steps.sigma[k] ** 2)
    return memory**2 / variance
