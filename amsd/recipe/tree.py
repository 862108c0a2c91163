"""`Recipe`: the tables of `amsd.recipe.tables` and a method's own, as one tree."""

from __future__ import annotations

from itertools import product
from typing import Any

from pydantic import SerializeAsAny

from amsd.recipe.methods.adjoint_matching import AdjointMatching
from amsd.recipe.methods.base import MethodSection
from amsd.recipe.schema import EvaluationSetting
from amsd.recipe.tables import Tables


class Recipe(Tables):
    """Everything that determines one run."""

    method: SerializeAsAny[MethodSection] = AdjointMatching()
    """The table of the method that `method.name` names (`amsd.recipe.methods`)."""

    @property
    def evaluation_settings(self) -> tuple[EvaluationSetting, ...]:
        """Every sampler setting that checkpoints are evaluated under: scheduler x guidance x eta."""
        scales = self.evaluation.guidance_scale or (self.guidance.guidance_scale,)
        steps = self.evaluation.num_inference_steps or self.schedule.num_inference_steps
        return tuple(
            EvaluationSetting(eta=eta, scheduler=scheduler, guidance_scale=scale, num_inference_steps=steps)
            for scheduler, scale, eta in product(self.evaluation.scheduler, scales, self.evaluation.eta)
        )

    @property
    def scorer_options(self) -> dict[str, dict[str, Any]]:
        """Options of every reward, held-out metric and embedder that has some, by name."""
        return {**self.evaluation.options, **{term.name: term.options for term in self.reward}}

    @property
    def best_metric(self) -> str:
        """Name of the evaluation metric that decides which checkpoint is `best`."""
        return self.evaluation.best or self.reward[0].name
