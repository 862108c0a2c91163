"""Adjoint Matching (Domingo-Enrich et al., ICLR 2025): `am` and `buffer-am`, named as in the reference.

Experience is lean adjoints, and the loss matches controls. What belongs to this method alone is here: outliers,
importance weights, the estimate of the KL divergence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

import torch
from torch import Tensor

from amsd.diffusion.steps import AffineSteps, at
from amsd.matching import (
    MatchingLoss,
    QuantileThreshold,
    control,
    inverse_probabilities,
    matching_loss,
    norm_ratio,
    normalized_ess,
    self_normalized_weights,
    step_weights,
    stepwise_log_weights,
)
from amsd.recipe import AdjointMatching, Recipe
from amsd.rows import on_device
from amsd.training.events import Notice
from amsd.training.experience import ItemLosses, Sample
from amsd.training.methods.lean_adjoint import AdjointExperience, Items, collect
from amsd.training.record import gathered, means, reward_values
from amsd.training.remarks import not_memoryless
from amsd.training.sources import Batch
from amsd.training.trainer import BufferSOCTrainer, SOCTrainer


class AMTrainer(SOCTrainer[AdjointExperience]):
    """Adjoint Matching: |c (eps_theta - eps_0) + sigma a|^2 at a few steps of each trajectory."""

    experience_class = AdjointExperience
    threshold = QuantileThreshold()
    masked_hint = (
        "; raise method.reward_multiplier, set normalize = true for the reward, raise "
        'method.per_sample_threshold_quantile, or set method.outliers = "clip"'
    )

    @property
    def method(self) -> AdjointMatching:
        """The recipe's `[method]`."""
        assert isinstance(self.recipe.method, AdjointMatching)
        return self.recipe.method

    @property
    def weighs_whole_batch(self) -> bool:
        """As the section says."""
        return self.method.weighs_whole_batch

    @classmethod
    def warnings(cls, recipe: Recipe, steps: AffineSteps) -> Iterator[Notice]:
        """What any method says, and a sampler that remembers its initial noise."""
        yield from super().warnings(recipe, steps)
        yield from not_memoryless(steps)

    @classmethod
    def weighs_by_control(cls, recipe: Recipe) -> bool:
        """Unless the recipe takes the weight out again."""
        assert isinstance(recipe.method, AdjointMatching)
        return recipe.method.step_weights != "prediction"

    def compute_experience(self, samples: Sequence[Sample], passes: int, step: int) -> AdjointExperience:
        """Rollout, reward gradient and lean adjoint."""
        return collect(self.problem, self.method, samples, passes, step, self.clock)

    def losses(self, experience: AdjointExperience, rows: Tensor, pass_index: int) -> ItemLosses:
        """Squared distance of each control to its target, and what is logged of it."""
        items = experience.items(rows, pass_index)
        matched = self.match(items, weigh=self.method.needs_log_weights and not self.only_losses)
        logged = {each.name: getattr(matched, each.name).detach() for each in fields(matched) if each.name != "loss"}
        return ItemLosses(matched.loss, {**logged, "index": items.indices})

    def match(self, items: Items, weigh: bool) -> MatchingLoss:
        """|c (eps_theta - eps_0) + sigma a|^2 of each item; log importance weights if asked for."""
        steps, device = self.problem.steps, self.problem.device
        x = items.latent("states", device)
        conditioning = items.conditioning(device).dropped(items.dropped)
        prediction = self.problem.finetuned(conditioning, self.problem.control_guidance)(x, items.indices)
        base = items.latent("base_predictions", device)
        u = control(prediction, base, at(steps.control_scale, items.indices, x))
        matched = matching_loss(u, items.latent("adjoints", device), at(steps.sigma, items.indices, x))
        matched = replace(matched, prediction_ratio=norm_ratio(prediction, base))
        return replace(matched, log_weights=self._log_weights(items, x, prediction)) if weigh else matched

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
            there = on_device(rows, device)
            predict = self.problem.finetuned(items.conditioning(device).rows(there), scale)
            current[there] = predict(x[there], items.indices[rows]).to(current.dtype)
        before = items.latent("sampler_predictions", device)
        difference = control(current, before, at(steps.control_scale, items.indices, x))
        return stepwise_log_weights(difference, items.latent("noises", device))

    def weights(self, items: ItemLosses) -> Tensor:
        """Outliers are left out or clipped; weights by step and by importance multiply, where they are used."""
        weights = self._outliers(items.loss)
        if self.method.step_power:
            by_step = step_weights(self.problem.steps.control_scale, self.method.step_power)
            weights = weights * by_step[items.logged["index"].cpu()]
        if self.method.weighs_by_importance:
            weights = weights * self_normalized_weights(items.logged["log_weights"].double())
        return weights

    def _outliers(self, losses: Tensor) -> Tensor:
        """Weight of each loss (M,) as an outlier or not, float64 on the CPU."""
        roots = losses.detach().cpu().double().sqrt()
        method = self.method
        if method.per_sample_threshold_quantile < 0:
            return torch.ones_like(roots)
        threshold = self._moved(roots) if method.outlier_threshold == "current" else self.threshold
        return threshold.mask(roots) if method.outliers == "mask" else threshold.clip(roots)

    def _moved(self, roots: Tensor) -> QuantileThreshold:
        return self.threshold.updated(roots, self.method.per_sample_threshold_quantile)

    def after_step(self, items: ItemLosses) -> None:
        """Move the threshold; collect again once the policy is too far from the buffer's."""
        if self.method.per_sample_threshold_quantile >= 0:
            self.threshold = self._moved(items.loss.double().sqrt())
        if self.method.needs_log_weights:
            self.source.feedback(normalized_ess(items.logged["log_weights"]))

    def step_values(self, batch: Batch[AdjointExperience], items: ItemLosses) -> dict[str, float]:
        """Rewards, adjoints, controls, outliers and, where it is used, the effective sample size."""
        experience, rows = batch.experience, batch.rows
        values = reward_values(experience.rewards[rows], experience.terms, rows)
        values |= means({f"adjoint_norm/{at}": norm[rows] for at, norm in experience.adjoint_norm.items()})
        gradients = gathered(experience.reward_gradient_norm[rows])
        values["reward_gradient_norm"] = float(gradients.mean())
        values["reward_gradient_norm/median"] = float(gradients.median())
        values["reward_gradient_norm/largest"] = float(gradients.max())
        values["memory"] = float(gathered(experience.initial_cosine[rows]).mean()) ** 2
        values["clamped_share"] = float(gathered(experience.clamped_share[rows]).mean())
        return values | self._control_values(items) | self._importance_values(items)

    def _control_values(self, items: ItemLosses) -> dict[str, float]:
        count = self.method.timesteps_per_trajectory
        controls, targets, work = (items.logged[name] for name in ("control_norm", "target_norm", "work"))
        # Stored indices run over the controlled steps, which come first, so index and position agree.
        indices = items.logged["index"].view(-1, count)
        each = inverse_probabilities(len(self.problem.steps.controlled), indices).flatten()
        trajectories = len(controls) / count

        def path(values: Tensor) -> float:
            """Mean over trajectories of the sum over all steps, from the items drawn."""
            return float((values.double() * each).sum()) / trajectories

        control, target = float(controls.mean()), float(targets.mean())
        return {
            "control_norm": control,
            "target_norm": target,
            "target_norm/largest_share": float(targets.max() / targets.sum().clamp(min=1e-30)),
            "control_to_target": (control / target) ** 0.5 if target > 0 else 0.0,
            "kl": 0.5 * path(controls),
            "prediction_ratio": float(items.logged["prediction_ratio"].mean()),
            "predicted_shift": path(work) / self.method.reward_multiplier,
            "masked_share": float((self._outliers(items.loss) < 1).double().mean()),
        }

    def _importance_values(self, items: ItemLosses) -> dict[str, float]:
        if not self.method.needs_log_weights:
            return {}
        log_weights, index = items.logged["log_weights"], items.logged["index"]
        by_step = [normalized_ess(log_weights[index == k]) for k in torch.unique(index)]
        return {"ess": normalized_ess(log_weights), "ess/lowest_step": min(by_step)}

    def state(self) -> dict[str, Any]:
        """The moving threshold."""
        return {"threshold": asdict(self.threshold)}

    def restore(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """The moving threshold."""
        self.threshold = QuantileThreshold(**state["threshold"])


class BufferAMTrainer(BufferSOCTrainer[AdjointExperience], AMTrainer):
    """Adjoint Matching from a buffer."""
