"""Budgets of a run: how far from the base model it may go before it ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from amsd.evaluation.result import DIVERSITY, EvaluationResult, saved_results
from amsd.training import processes
from amsd.training.events import AnyCheckpoint, Notice
from amsd.training.problem import ControlProblem
from amsd.training.validation import validation_values


@dataclass(frozen=True)
class Budgets:
    """What a trainer asks after every checkpoint: whether the run's budgets are used up (`training.kl_budget`,
    `training.diversity_budget`)."""

    problem: ControlProblem
    prompts: Sequence[str]
    """Held-out prompts."""

    def __call__(self, record: AnyCheckpoint) -> Notice | None:
        """Why the run ends at this checkpoint, the same on every process; None where it goes on."""
        reasons = [*self._divergence(), *self._diversity(record)]
        if not reasons:
            return None
        text = f"The run ends at step {record.step}, before its {self.problem.recipe.training.steps} steps: "
        return Notice(
            "budget", text + "; ".join(each for each, _ in reasons) + f". The checkpoint {record.path.name} is kept.",
            record.step, {name: value for _, (name, value) in reasons},
        )  # fmt: skip

    def _divergence(self) -> Iterator[tuple[str, tuple[str, float]]]:
        budget = self.problem.recipe.training.kl_budget
        if budget is None:
            return
        kl = validation_values(self.problem, self.prompts)["validation/kl"]
        if kl >= budget:
            yield f"KL divergence {kl:.3g} has reached training.kl_budget = {budget:g}", ("validation/kl", kl)

    def _diversity(self, record: AnyCheckpoint) -> Iterator[tuple[str, tuple[str, float]]]:
        budget = self.problem.recipe.training.diversity_budget
        if budget is None:
            return
        results = saved_results(record.path / "evaluation") if processes.rank() == 0 else []
        for name, share in processes.gather([[*shares(results)]])[0]:  # the main process wrote them
            if share < budget:
                text = f"{name} is {share:.0%} of the base model's, below training.diversity_budget = {budget:g}"
                yield text, (name, share)


def shares(results: Sequence[EvaluationResult]) -> Iterator[tuple[str, float]]:
    """Setting and diversity -> share of the base model's."""
    for result in results:
        for name, metric in result.metrics.items():
            if name.startswith(DIVERSITY) and metric.paired is not None:
                base = metric.mean - metric.paired.difference
                yield f"{result.name}/{name}", metric.mean / base if base > 0 else 1.0
