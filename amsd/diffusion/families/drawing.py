"""The half of a family that draws: pictures through the pipeline's own call, and what is refused before it."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from amsd.diffusion.families.texts import Texts
from amsd.errors import UsageError
from amsd.recipe import Model


class Drawing(Texts):
    """Pictures of a pipeline."""

    takes_eta: ClassVar[bool] = True
    """Whether the pipeline's call takes `eta`."""
    largest_eta: ClassVar[float] = math.inf
    """Noise above which a plain diffusers sampler of the family gives NaN."""

    size: tuple[int, int]
    """Height and width of a picture in pixels."""

    @final
    def check_step_count(self, num_inference_steps: int, scheduler: Any = None) -> None:
        """Refuse more steps than the model's scheduler has, or fewer than its grid (or that of `scheduler`) can have.

        Raises:
            UsageError: there are too many, or too few.
        """
        self._check_fewest(num_inference_steps, scheduler or getattr(self.pipeline, "scheduler", None))
        most = self._most_steps()
        if most is not None and num_inference_steps > most:
            raise UsageError(
                f"num_inference_steps = {num_inference_steps}: the model's noise table has {most} timesteps, and a "
                "sampler can take no more steps."
            )

    @final
    def check_drawing(self, eta: float, guidance_scale: float, num_inference_steps: int) -> None:
        """Refuse what a plain diffusers pipeline and sampler would draw otherwise than it is asked to.

        Raises:
            UsageError: scales below 1 are ignored there, too much noise gives NaN, or there are too many steps.
        """
        if guidance_scale < 1:
            raise UsageError(
                f"guidance_scale = {guidance_scale:g}: diffusers' pipelines ignore scales below 1, so the picture "
                "would carry a wrong label. Use 1 (no guidance) or more."
            )
        if eta > self.largest_eta:
            raise UsageError(
                f"eta = {eta:g}: the plain sampler takes eta up to {self.largest_eta:g}. More is for training and for "
                'evaluation.scheduler = ["fine-tuning"].'
            )
        self.check_step_count(num_inference_steps)

    def _check_fewest(self, num_inference_steps: int, scheduler: Any) -> None:
        """Refuse fewer steps than the grid of a scheduler (None: of no known one) can have.

        Raises:
            UsageError: there are too few.
        """

    def _most_steps(self) -> int | None:
        """Steps that a sampler can take at most; None where there is no limit."""
        return None

    def draw(
        self,
        prompt: Mapping[str, Any],
        generators: Sequence[torch.Generator],
        *,
        eta: float,
        guidance_scale: float,
        num_inference_steps: int,
        output_type: str,
        latents: Tensor | None = None,
        callback: Callable[..., Any] | None = None,
    ) -> Any:
        """One picture per generator through the pipeline's own call and the scheduler that it holds now.

        Args:
            prompt: arguments of the call that stand for the prompts, such as those of `prompt_arguments`.
            generators: one per picture; all its noise comes from it.
            eta: noise of the sampler.
            guidance_scale: 1 is none.
            num_inference_steps: steps.
            output_type: `pt`, `pil` or `latent`, as in diffusers.
            latents: initial noise (B, *latent_shape); unset: drawn by the pipeline.
            callback: called by the pipeline after each step (`callback_on_step_end` of diffusers).
        """
        height, width = self.size
        noise = {"eta": eta} if self.takes_eta else {}
        with self._sampled(eta, generators):
            return self.pipeline(
                **prompt, **self._call(prompt, guidance_scale), **noise, latents=latents, generator=list(generators),
                height=height, width=width, num_inference_steps=num_inference_steps, output_type=output_type,
                callback_on_step_end=callback,
            ).images  # fmt: skip

    @abstractmethod
    def _call(self, prompt: Mapping[str, Any], guidance_scale: float) -> dict[str, Any]:
        """Arguments of the pipeline's call beside prompt, noise, steps and size."""

    def _sampled(self, eta: float, generators: Sequence[torch.Generator]) -> AbstractContextManager[None]:
        """Around a call: what a scheduler without `eta` needs for noise."""
        return nullcontext()

    @classmethod
    def documented_call(cls, model: Model, guidance_scale: float) -> dict[str, Any]:
        """Arguments of the pipeline's call, for a reader of an export's card."""
        size = {} if model.size is None else {"height": model.size[0], "width": model.size[1]}
        return {"guidance_scale": guidance_scale, **size}
