"""`SOCDDIMScheduler`: diffusers' DDIM scheduler on the exact affine steps that training uses."""

from __future__ import annotations

import logging
import math
from typing import Any, Literal, Self, cast

import numpy as np
import torch
from diffusers import DDIMScheduler, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from amsd.diffusion.steps import AffineSteps, affine_steps
from amsd.errors import UsageError
from amsd.recipe import Schedule

# diffusers looks for the base class in the module that a saved pipeline names: see `SOCDDIMScheduler.__module__`.
__all__ = ["SOCDDIMScheduler", "SchedulerMixin"]

FinalStep = Literal["noiseless", "midpoint"]

_LOG = logging.getLogger(__name__)
_NOT_AFFINE = ("clip_sample", "thresholding")


class SOCDDIMScheduler(DDIMScheduler):  # type: ignore[misc]
    """DDIM with the next grid point as target of every step, and a choice of where the last step ends.

    `step` keeps diffusers' signature, so any diffusers pipeline can use it; `affine` gives the coefficients to
    training. Differences from `DDIMScheduler`:

    - each step ends exactly at the next grid point, also where N does not divide the training table;
    - an eta that is too large for a step is clamped instead of giving NaN;
    - `final_step` may be "noiseless" or "midpoint", (1 + alpha_bar)/2, which the reference implementation uses. It is
      part of the configuration. Where it is not None it takes the place of `set_alpha_to_one`;
    - a timestep that is not on the grid is an error.

    Clipping, thresholding and a zero terminal signal-to-noise ratio work in `step` as in `DDIMScheduler`; `affine`
    refuses them, because such a step has no control.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: np.ndarray[Any, Any] | list[float] | None = None,
        clip_sample: bool = True,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: Literal["leading", "trailing", "linspace"] = "leading",
        rescale_betas_zero_snr: bool = False,
        final_step: FinalStep | None = None,
    ) -> None:
        super().__init__(
            num_train_timesteps=num_train_timesteps,
            beta_start=beta_start,
            beta_end=beta_end,
            beta_schedule=beta_schedule,
            trained_betas=trained_betas,
            clip_sample=clip_sample,
            set_alpha_to_one=set_alpha_to_one if final_step is None else True,
            steps_offset=steps_offset,
            prediction_type=prediction_type,
            thresholding=thresholding,
            dynamic_thresholding_ratio=dynamic_thresholding_ratio,
            clip_sample_range=clip_sample_range,
            sample_max_value=sample_max_value,
            timestep_spacing=timestep_spacing,
            rescale_betas_zero_snr=rescale_betas_zero_snr,
        )
        self.final_step = final_step
        self._cached: tuple[Any, AffineSteps] | None = None

    @classmethod
    def for_recipe(cls, scheduler: Any, schedule: Schedule) -> Self:
        """The fine-tuning scheduler of a recipe, with the noise table of the model's own scheduler where unset.

        Raises:
            UsageError: the model's scheduler clips or thresholds, or its grid begins without any signal.
        """
        config = dict(scheduler.config)
        for key in _NOT_AFFINE:
            if config.get(key, False):
                raise UsageError(
                    f"The model's scheduler has {key} = true: its step is not affine, so the control is undefined. "
                    f"Set {key} to false in the model's scheduler_config.json."
                )
        table: dict[str, Any] = {
            key: config[key]
            for key in (
                "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas",
                "rescale_betas_zero_snr",
            )
            if config.get(key) is not None
        }  # fmt: skip
        if schedule.beta_start is not None and schedule.beta_end is not None:
            table |= {
                "beta_start": schedule.beta_start,
                "beta_end": schedule.beta_end,
                "beta_schedule": "scaled_linear",
                "trained_betas": None,
                "rescale_betas_zero_snr": False,
            }
        self: Self = cls(
            **table,
            clip_sample=False,
            steps_offset=config.get("steps_offset", 0),
            prediction_type=config.get("prediction_type", "epsilon"),
            timestep_spacing=schedule.timestep_spacing,
            final_step=schedule.final_step,
        )
        self.set_timesteps(schedule.num_inference_steps)
        if self._begins_without_signal():
            raise UsageError(
                "The model's scheduler has rescale_betas_zero_snr = true: no signal is left at its first timestep, so "
                "the control is undefined there. Set schedule.beta_start and schedule.beta_end, or "
                'schedule.timestep_spacing = "leading".'
            )
        return self

    @property
    def final_step(self) -> FinalStep | None:
        """Where the last step ends; None follows `set_alpha_to_one`, as in `DDIMScheduler`."""
        return cast(FinalStep | None, self.config.final_step)

    @final_step.setter
    def final_step(self, value: FinalStep | None) -> None:
        if value not in (None, "noiseless", "midpoint"):
            raise ValueError(f"final_step must be 'noiseless', 'midpoint' or None, but got {value!r}")
        self.register_to_config(final_step=value)

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Choose the grid; trailing spacing is t_k = round(T - k T / N) - 1 exactly.

        Raises:
            ValueError: no step at all, more steps than the table has, or a grid that leaves the table.
        """
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, but got {num_inference_steps}")
        super().set_timesteps(num_inference_steps, device=device)
        if self.config.timestep_spacing == "trailing":
            total = self.config.num_train_timesteps
            grid = np.round(total - np.arange(num_inference_steps) * total / num_inference_steps).astype(np.int64) - 1
            self.timesteps = torch.from_numpy(grid).to(device or "cpu")
        first, size = int(self.timesteps[0]), len(self.alphas_cumprod)
        if first >= size:
            raise ValueError(
                f"{num_inference_steps} steps with timestep_spacing={self.config.timestep_spacing!r} and "
                f"steps_offset={self.config.steps_offset} begin at timestep {first}, but the table ends at {size - 1}"
            )

    def affine(self, eta: float) -> AffineSteps:
        """Coefficients of all steps of the current grid.

        Raises:
            ValueError: the step is not affine (clipping, thresholding), or no signal is left at the first timestep.
        """
        for key in _NOT_AFFINE:
            if self.config[key]:
                raise ValueError(f"{key}=True has no affine step, so there is no control: pass {key}=False")
        if self._begins_without_signal():
            raise ValueError("alpha_bar is 0 at the first timestep (rescale_betas_zero_snr): no control exists there")
        return self._steps(eta)

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
        """One step in diffusers' signature; every argument means what it means there.

        Raises:
            ValueError: `set_timesteps` was not called, `timestep` is not on the grid, both `generator` and
                `variance_noise` are given, or a noise-predicting network meets alpha_bar = 0.
        """
        if generator is not None and variance_noise is not None:
            raise ValueError("generator and variance_noise are two sources of one noise: pass only one of them")
        steps = self._steps(eta)
        k = self._index(steps, timestep)
        epsilon = steps.prediction(model_output, k, sample)
        original = self._limited(steps.original(model_output, k, sample))
        limited = self.config.clip_sample or self.config.thresholding
        if limited and use_clipped_model_output:
            alpha_bar = float(steps.alpha_bar[k])
            epsilon = (sample - alpha_bar**0.5 * original) / (1 - alpha_bar) ** 0.5
        if limited or steps.alpha_bar[k] == 0:
            previous = self._mean(steps, k, original, epsilon)
        else:
            previous = steps.mean(k, sample, epsilon)
        if steps.sigma[k] > 0:
            if variance_noise is None:
                variance_noise = randn_tensor(
                    sample.shape, generator=generator, device=sample.device, dtype=sample.dtype
                )
            previous = previous + float(steps.sigma[k]) * variance_noise
        if not return_dict:
            return (previous, original)
        return DDIMSchedulerOutput(prev_sample=previous, pred_original_sample=original)

    def _mean(self, steps: AffineSteps, k: int, original: Tensor, epsilon: Tensor) -> Tensor:
        """Mean of step k from x_0 and noise (B, ...): DDIM eq. 12, for steps that are not affine in the state."""
        last = k + 1 == len(steps)
        after = self._final_alpha() if last else float(steps.alpha_bar[k + 1])
        direction = math.sqrt(max(1 - after - float(steps.sigma[k]) ** 2, 0.0))
        return math.sqrt(after) * original + direction * epsilon

    def _limited(self, original: Tensor) -> Tensor:
        """The predicted x_0 (B, ...) after thresholding or clipping, in diffusers' order."""
        if self.config.thresholding:
            return cast(Tensor, self._threshold_sample(original))
        if self.config.clip_sample:
            largest = float(self.config.clip_sample_range)
            return torch.clamp(original, -largest, largest)
        return original

    def _index(self, steps: AffineSteps, timestep: int | Tensor) -> int:
        """Position of a timestep on the grid."""
        hit = torch.nonzero(steps.timesteps == float(timestep)).flatten()
        if len(hit) != 1:
            raise ValueError(
                f"timestep {float(timestep):g} is not on the grid of {len(steps)} steps: use scheduler.timesteps"
            )
        k = int(hit[0])
        if steps.alpha_bar[k] == 0 and steps.prediction_type == "epsilon":
            raise ValueError(
                f"alpha_bar is 0 at timestep {int(timestep)} (rescale_betas_zero_snr): a prediction of the noise says "
                "nothing about the picture there. Use prediction_type='v_prediction' or timestep_spacing='leading'"
            )
        return k

    def _begins_without_signal(self) -> bool:
        return bool(self.alphas_cumprod[int(self.timesteps[0])] == 0)

    def _final_alpha(self) -> float:
        """alpha_bar at the end of the last step."""
        if self.final_step == "noiseless":
            return 1.0
        if self.final_step == "midpoint":
            return (1 + float(self.alphas_cumprod[int(self.timesteps[-1])])) / 2
        return float(self.final_alpha_cumprod)

    def _steps(self, eta: float) -> AffineSteps:
        """The coefficients, remembered as long as everything that they come from stays the same.

        A rollout would otherwise build them at every step. Says once which steps had to be clamped.

        Raises:
            ValueError: `set_timesteps` was not called.
        """
        if self.num_inference_steps is None:
            raise ValueError("No grid yet: call set_timesteps(num_inference_steps) first")
        grid = self.timesteps.cpu()
        final, prediction_type = self._final_alpha(), str(self.config.prediction_type)
        table = self.alphas_cumprod[grid.to(self.alphas_cumprod.device)]
        key = (eta, final, prediction_type, tuple(grid.tolist()), tuple(table.tolist()))
        if self._cached is None or self._cached[0] != key:
            steps = affine_steps(self.alphas_cumprod, grid, final, eta, prediction_type)
            if steps.clamped:
                _LOG.warning(
                    "eta = %g is too large for %d of %d steps (from index %d); clamped to sqrt(1 - alpha_bar').",
                    eta, len(steps.clamped), len(steps), steps.clamped[0],
                )  # fmt: skip
            self._cached = (key, steps)
        return self._cached[1]


# diffusers writes a component's module into model_index.json, and reads the class from that module if the program has
# imported it: `import amsd` is all that a program needs.
SOCDDIMScheduler.__module__ = "amsd"
