"""What is logged of every optimizer step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from amsd.matching import MatchingLoss, effective_sample_size, inverse_probabilities
from amsd.recipe import Recipe
from amsd.training import processes
from amsd.training.sources import Batch


@dataclass(frozen=True)
class Outcome:
    """What one optimizer step did; tensors are over the global batch, on the CPU."""

    loss: float
    items: MatchingLoss
    indices: Tensor
    """Step index of each item, (M,)."""
    outlier_weights: Tensor
    """Weight of each item's loss, 1 unless it is an outlier, (M,)."""
    weighed: bool
    """Whether the items carry importance weights."""
    gradient_norm: float


def step_values(
    recipe: Recipe, batch: Batch, outcome: Outcome, rate: float, times: dict[str, float], controlled: int
) -> dict[str, float]:
    """Flat names to values of one step, over the global batch; every process must call it.

    `controlled` is the number of steps that carry a control; `times` is what the phase clock took.
    """
    return (
        _rewards(batch)
        | _loss(recipe, outcome, controlled)
        | {"learning_rate": rate, "gradient_norm": outcome.gradient_norm}
        | _buffer(recipe, batch, outcome)
        | times
        | {"images_per_second": recipe.optimizer.prompts_per_step / max(times["seconds/total"], 1e-9)}
    )


def _rewards(batch: Batch) -> dict[str, float]:
    diagnostics = batch.experience.diagnostics

    def used(value: Tensor) -> Tensor:
        return processes.gather_rows(value[batch.rows].double())

    rewards = used(diagnostics.rewards)
    values = {"reward/mean": float(rewards.mean()), "reward/std": float(rewards.std(correction=0))}
    values |= {f"reward/{name}": float(used(term).mean()) for name, term in diagnostics.terms.items()}
    values |= {f"adjoint_norm/{at}": float(used(norm).mean()) for at, norm in diagnostics.adjoint_norm.items()}
    gradients = used(diagnostics.reward_gradient_norm)
    values["reward_gradient_norm"] = float(gradients.mean())
    values["reward_gradient_norm/median"] = float(gradients.median())
    values["reward_gradient_norm/largest"] = float(gradients.max())
    values["memory"] = float(used(diagnostics.initial_cosine).mean()) ** 2
    values["clamped_share"] = float(used(diagnostics.clamped_share).mean())
    return values


def _loss(recipe: Recipe, outcome: Outcome, controlled: int) -> dict[str, float]:
    items = outcome.items
    count = recipe.method.timesteps_per_trajectory
    # Stored indices run over the controlled steps, which come first, so index and position agree.
    weights = inverse_probabilities(controlled, outcome.indices.view(-1, count)).flatten()
    trajectories = len(items.control_norm) / count

    def path(values: Tensor) -> float:
        """Mean over trajectories of the sum over all steps, from the items drawn."""
        return float((values.double() * weights).sum()) / trajectories

    control, target = float(items.control_norm.mean()), float(items.target_norm.mean())
    return {
        "loss": outcome.loss,
        "control_norm": control,
        "target_norm": target,
        "target_norm/largest_share": float(items.target_norm.max() / items.target_norm.sum().clamp(min=1e-30)),
        "control_to_target": (control / target) ** 0.5 if target > 0 else 0.0,
        "kl": 0.5 * path(items.control_norm),
        "predicted_shift": path(items.work) / recipe.method.reward_multiplier,
        "masked_share": float((outcome.outlier_weights < 1).double().mean()),
    }


def _buffer(recipe: Recipe, batch: Batch, outcome: Outcome) -> dict[str, float]:
    if recipe.method.name != "buffer-am":
        return {}
    return _importance(outcome) | {
        "buffer/collected": float(batch.collected),
        "buffer/pass": float(batch.pass_index),
        "buffer/bytes_per_trajectory": batch.experience.bytes_per_trajectory,
    }


def _importance(outcome: Outcome) -> dict[str, float]:
    if not outcome.weighed:
        return {}
    log_weights = outcome.items.log_weights.double()
    by_step = [
        float(effective_sample_size(log_weights[outcome.indices == k]) / int((outcome.indices == k).sum()))
        for k in torch.unique(outcome.indices)
    ]
    return {"ess": float(effective_sample_size(log_weights)) / len(log_weights), "ess/lowest_step": min(by_step)}
