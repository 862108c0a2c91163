"""The trainers by the names that users of the reference know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from amsd.diffusion.steps import at
from amsd.matching import MatchingLoss, control, matching_loss, stepwise_log_weights
from amsd.training.collect import collect
from amsd.training.experience import Experience, Items, Sample
from amsd.training.sources import Buffered
from amsd.training.trainer import SOCTrainer


class AMTrainer(SOCTrainer):
    """Adjoint Matching (Domingo-Enrich et al., ICLR 2025): experience is lean adjoints, the loss matches controls."""

    def compute_experience(self, samples: Sequence[Sample], passes: int, step: int) -> Experience:
        """Rollout, reward gradient and lean adjoint."""
        return collect(self.problem, samples, passes, step, self.clock)

    def match(self, items: Items, weigh: bool) -> MatchingLoss:
        """|c (eps_theta - eps_0) + sigma a|^2 of each item."""
        steps, device = self.problem.steps, self.problem.device
        x = items.latent("states", device)
        conditioning = items.conditioning(device).dropped(items.dropped)
        prediction = self.problem.finetuned(conditioning, self.problem.control_guidance)(x, items.indices)
        base = items.latent("base_predictions", device)
        u = control(prediction, base, at(steps.control_scale, items.indices, x))
        matched = matching_loss(u, items.latent("adjoints", device), at(steps.sigma, items.indices, x))
        if not weigh:
            return matched
        return replace(matched, log_weights=self._log_weights(items, x, prediction))

    @torch.no_grad()
    def _log_weights(self, items: Items, x: Tensor, prediction: Tensor) -> Tensor:
        """Step-wise log importance weights (M,) of the current policy against the one that sampled the items.

        Both predictions are guided as the sampler was, so an unchanged policy has weight one in every mode. That of the
        loss, `prediction` (M, ...), is one of them where the control is guided alike and the prompt is not dropped.
        """
        steps, device = self.problem.steps, self.problem.device
        scale = self.recipe.guidance.guidance_scale
        other = items.dropped if scale == self.problem.control_guidance else torch.ones_like(items.dropped)
        rows = torch.nonzero(other).flatten()
        current = prediction.detach().clone()
        if len(rows):
            on_device = rows.to(device)
            predict = self.problem.finetuned(items.conditioning(device).rows(on_device), scale)
            current[on_device] = predict(x[on_device], items.indices[rows]).to(current.dtype)
        before = items.latent("sampler_predictions", device)
        difference = control(current, before, at(steps.control_scale, items.indices, x))
        return stepwise_log_weights(difference, items.latent("noises", device))


class BufferSOCTrainer(SOCTrainer):
    """Any method, with experience from a buffer that is used in several passes."""

    source_class = Buffered


class BufferAMTrainer(BufferSOCTrainer, AMTrainer):
    """Adjoint Matching from a buffer."""


TRAINERS: dict[str, type[SOCTrainer]] = {"am": AMTrainer, "buffer-am": BufferAMTrainer}
"""Trainer by `method.name`."""
