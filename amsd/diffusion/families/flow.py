"""What flow-matching pipelines have in common: a velocity on the path x = (1 - s) x_data + s noise."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from amsd.diffusion.families.base import Family
from amsd.diffusion.families.decoding import decode_in_slices
from amsd.diffusion.families.flow_scheduler import SOCFlowMatchScheduler, require_euler
from amsd.diffusion.families.texts import embedded
from amsd.diffusion.guidance import TextCondition
from amsd.diffusion.steps import AffineSteps
from amsd.errors import UsageError
from amsd.recipe import Schedule


class FlowFamily(Family):
    """A transformer that predicts the velocity noise - x_data (docs/method.md section 10)."""

    denoiser_name = "transformer"
    output_layers = ("proj_out",)
    takes_eta = False

    @classmethod
    def check_schedule(cls, schedule: Schedule) -> None:
        """The grid is the pipeline's own: keys of a noise table mean nothing here."""
        plain = Schedule()
        for key in ("beta_start", "beta_end", "final_step", "timestep_spacing"):
            value = getattr(schedule, key)
            if value != getattr(plain, key):
                raise UsageError(
                    f"schedule.{key} = {value!r} has no effect on a flow-matching model: its noise levels are those of "
                    "the model's own scheduler, and its last step ends without noise. Remove the key."
                )

    @abstractmethod
    def _set_grid(self, scheduler: Any, num_inference_steps: int) -> None:
        """Give a scheduler the grid that the pipeline gives it for this number of steps."""

    def steps(self, schedule: Schedule) -> AffineSteps:
        """Steps on the pipeline's own grid, shift included."""
        self.check_schedule(schedule)
        scheduler = self.training_sampler(schedule)
        self._set_grid(scheduler, schedule.num_inference_steps)
        return scheduler.affine(schedule.eta)

    def training_sampler(self, schedule: Schedule) -> SOCFlowMatchScheduler:
        """Euler's method with noise."""
        self.check_schedule(schedule)
        return SOCFlowMatchScheduler.of(self.exported_sampler(schedule))

    def exported_sampler(self, schedule: Schedule) -> Any:
        """The model's own, ending where the recipe says: its steps without noise are those of fine-tuning."""
        own = self.pipeline.scheduler
        require_euler(own)
        if schedule.shift_terminal is None:
            return type(own).from_config(own.config)
        return type(own).from_config(own.config, shift_terminal=schedule.shift_terminal)

    def departures(self, schedule: Schedule) -> Iterator[str]:
        """Diffusers' scheduler has no noise."""
        if schedule.eta:
            yield (
                f"Fine-tuning sampled with eta = {schedule.eta:g}; the scheduler of an export is diffusers' own, "
                "which has no noise (eta = 0). `amsd sample --eta` draws with it."
            )

    def own_sampler(self, eta: float) -> tuple[Any, str | None]:
        """The model's own scheduler; with noise, Euler's method with noise on the same grid."""
        own = self.pipeline.scheduler
        require_euler(own)
        if eta == 0:
            return type(own).from_config(own.config), None
        reason = f"the model's own {type(own).__name__} has no eta: the steps of fine-tuning replace it"
        return SOCFlowMatchScheduler.of(own), reason

    def _check_fewest(self, num_inference_steps: int, scheduler: Any) -> None:
        """A grid that is stretched to an end needs one besides its beginning: diffusers would divide zero by zero."""
        end = None if scheduler is None else scheduler.config.get("shift_terminal")
        if end and num_inference_steps == 1:
            raise UsageError(
                f"num_inference_steps = 1: a grid that ends at shift_terminal = {end:g} has at least 2 steps. "
                "Take more, or remove shift_terminal."
            )

    @contextmanager
    def _sampled(self, eta: float, generators: Sequence[torch.Generator]) -> Iterator[None]:
        """The pipeline's call has no `eta`, so its scheduler brings the noise."""
        pipeline = self.pipeline
        before = pipeline.scheduler
        if eta > 0 and not isinstance(before, SOCFlowMatchScheduler):
            pipeline.scheduler = SOCFlowMatchScheduler.of(before)
        if isinstance(pipeline.scheduler, SOCFlowMatchScheduler):
            pipeline.scheduler.with_noise(eta, generators)
        try:
            yield
        finally:
            pipeline.scheduler = before

    def encode_empty(self, count: int) -> TextCondition:
        """The encoded empty string."""
        return self.encode([""]).map(lambda value: value.expand(count, *value.shape[1:]))

    def prompt_arguments(self, prompt: TextCondition, negative: TextCondition) -> dict[str, Any]:
        """Embeddings, and pooled ones where there are any, with those of the negative prompt."""
        return embedded(prompt, negative, "pooled_projections")

    def _decoded(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) as images."""
        vae, (height, width) = self.pipeline.vae, self.size
        scaled = latents.float() / float(vae.config.scaling_factor) + float(vae.config.shift_factor or 0.0)
        return decode_in_slices(vae, scaled, height * width)
