"""`SOCDDIMScheduler`: diffusers' DDIM scheduler on the exact affine steps that training uses."""

from __future__ import annotations

import logging
from typing import Any, Literal, Self, cast

import numpy as np
import torch
from diffusers import DDIMScheduler
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from amsd.diffusion.steps import AffineSteps, affine_steps
from amsd.errors import UsageError
from amsd.recipe import Schedule

_LOG = logging.getLogger(__name__)


class SOCDDIMScheduler(DDIMScheduler):  # type: ignore[misc]
    """DDIM with the next grid point as target of every step, and a choice of where the last step ends.

    `step` keeps diffusers' signature, so any diffusers pipeline can use it; `affine` gives the coefficients to
    training. Differences from `DDIMScheduler`: the grid is exact where N does not divide the training table, eta > 1
    is clamped instead of giving NaN, and `final_step` may be the midpoint of the reference implementation.
    """

    final_step: Literal["noiseless", "midpoint"] = "noiseless"

    @classmethod
    def for_recipe(cls, scheduler: Any, schedule: Schedule) -> Self:
        """The fine-tuning scheduler of a recipe, with the noise table of the model's own scheduler where unset.

        Raises:
            UsageError: the model's scheduler clips, thresholds or rescales, which has no affine step.
        """
        config = dict(scheduler.config)
        for key in ("clip_sample", "thresholding", "rescale_betas_zero_snr"):
            if config.get(key, False):
                raise UsageError(
                    f"The model's scheduler has {key} = true: its step is not affine, so the control is undefined. "
                    f"Set {key} to false in the model's scheduler_config.json."
                )
        table: dict[str, Any] = {
            key: config[key]
            for key in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
            if config.get(key) is not None
        }
        if schedule.beta_start is not None and schedule.beta_end is not None:
            table |= {
                "beta_start": schedule.beta_start,
                "beta_end": schedule.beta_end,
                "beta_schedule": "scaled_linear",
                "trained_betas": None,
            }
        self = cls(
            **table,
            clip_sample=False,
            set_alpha_to_one=True,
            steps_offset=config.get("steps_offset", 0),
            prediction_type=config.get("prediction_type", "epsilon"),
            timestep_spacing=schedule.timestep_spacing,
        )
        self.final_step = schedule.final_step
        self.set_timesteps(schedule.num_inference_steps)
        return self

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Choose the grid; trailing spacing is t_k = round(T - k T / N) - 1 exactly."""
        super().set_timesteps(num_inference_steps, device=device)
        if self.config.timestep_spacing == "trailing":
            total = self.config.num_train_timesteps
            grid = np.round(total - np.arange(num_inference_steps) * total / num_inference_steps).astype(np.int64) - 1
            self.timesteps = torch.from_numpy(grid).to(device or "cpu")

    def affine(self, eta: float) -> AffineSteps:
        """Coefficients of all steps of the current grid; says once which steps had to be clamped."""
        last = self.alphas_cumprod[int(self.timesteps[-1])].double()
        final = 1.0 if self.final_step == "noiseless" else float((1 + last) / 2)
        steps = affine_steps(self.alphas_cumprod, self.timesteps, final, eta, self.config.prediction_type)
        if steps.clamped:
            _LOG.warning(
                "eta = %g is too large for %d of %d steps (from index %d); clamped to sqrt(1 - alpha_bar').",
                eta, len(steps.clamped), len(steps), steps.clamped[0],
            )  # fmt: skip
        return steps

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[Tensor, ...]:
        """One step in diffusers' signature; `eta` and the noise arguments mean what they mean there.

        Raises:
            ValueError: `use_clipped_model_output` (not affine), or `timestep` is not on the grid.
        """
        if use_clipped_model_output:
            raise ValueError("use_clipped_model_output=True has no affine step")
        steps = self._steps_for(eta)
        hit = torch.nonzero(steps.timesteps == int(timestep)).flatten()
        if len(hit) != 1:
            raise ValueError(f"timestep {int(timestep)} is not on the grid of {len(steps)} steps")
        k = int(hit[0])
        epsilon = steps.epsilon(model_output, k, sample)
        previous = steps.mean(k, sample, epsilon)
        if steps.sigma[k] > 0:
            if variance_noise is None:
                variance_noise = randn_tensor(
                    sample.shape, generator=generator, device=sample.device, dtype=sample.dtype
                )
            previous = previous + float(steps.sigma[k]) * variance_noise
        alpha_bar = float(steps.alpha_bar[k])
        original = (sample - (1 - alpha_bar) ** 0.5 * epsilon) / alpha_bar**0.5
        if not return_dict:
            return (previous, original)
        return DDIMSchedulerOutput(prev_sample=previous, pred_original_sample=original)

    def _steps_for(self, eta: float) -> AffineSteps:
        # One table per (grid, eta), remembered so that a rollout does not rebuild it at every step.
        key = (eta, self.final_step, len(self.timesteps))
        cached = cast("dict[Any, AffineSteps]", self.__dict__.setdefault("_affine_cache", {}))
        if key not in cached:
            cached.clear()
            cached[key] = self.affine(eta)
        return cached[key]
