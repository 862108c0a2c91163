"""Reward hacking: the trained reward rises while what was not trained on falls."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from amsd.evaluation.result import DIVERSITY, EvaluationResult, Metric, is_distance
from amsd.training.events import Notice

if TYPE_CHECKING:
    from amsd.tracking.log import LogEntry

SIGNIFICANCE = 0.01
"""Two-sided p-value of the paired t-test below which a change counts; shared by the held-out metrics (Bonferroni)."""
METRIC_FALL = 0.2
"""Smallest fall of a held-out metric that matters, in s.d. of its values over prompts."""
DIVERSITY_FALL = 0.1
"""Smallest fall of a diversity that matters, as a share of the base model's."""
RATIO_LIMIT = 0.2
"""How far the norm of the network's prediction may lie from the base's, as a share of it."""
CLAMPED_RISE = 0.1
"""Rise of the share of pixels outside of [0, 1], which have no gradient, that matters."""
WINDOW = 5
"""Logged steps that such a sign is averaged over."""


@dataclass(frozen=True)
class TrainingSigns:
    """What the training's own log says of a policy that leaves the base's pictures behind."""

    prediction_ratio: float | None = None
    """Norm of the prediction against the base's, mean over the last logged steps; None where it is not logged."""
    clamped_rise: float | None = None
    """Rise of the share of decoded pixels outside of [0, 1] since the first steps."""

    @classmethod
    def of_log(cls, entries: Iterable[LogEntry]) -> TrainingSigns:
        """From the lines of metrics.jsonl."""
        steps = [entry.values for entry in entries if entry.kind == "step"]
        ratios, measured, clamped = (
            [values[name] for values in steps if name in values]
            for name in ("prediction_ratio", "validation/prediction_ratio", "clamped_share")
        )
        rise = math.fsum(clamped[-WINDOW:]) / WINDOW - math.fsum(clamped[:WINDOW]) / WINDOW
        ratio = math.fsum(ratios[-WINDOW:]) / WINDOW if len(ratios) >= WINDOW else None
        return cls(
            measured[-1] if ratio is None and measured else ratio,  # a validation alone is an average over a batch
            rise if len(clamped) >= 2 * WINDOW else None,
        )

    def sentences(self) -> list[str]:
        """One for each sign that is beyond its limit."""
        said = []
        if self.prediction_ratio is not None and abs(self.prediction_ratio - 1) > RATIO_LIMIT:
            said.append(f"the network's prediction has {self.prediction_ratio:.2f} times the norm of the base's")
        if self.clamped_rise is not None and self.clamped_rise > CLAMPED_RISE:
            said.append(f"the share of pixels outside the range of a picture rose by {self.clamped_rise:.0%}")
        return said


def reward_hacking(
    results: Sequence[EvaluationResult],
    trained: Mapping[str, float],
    step: int = 0,
    signs: TrainingSigns | None = None,
) -> Notice | None:
    """The alarm of a checkpoint, or None. `trained` gives the weight of each trained reward by name.

    It is raised if, under one and the same setting, both hold against the base model:
    1. a trained reward has changed in the direction of its weight, p < `SIGNIFICANCE`;
    2. a held-out metric or a diversity has fallen, p < `SIGNIFICANCE` divided by their number, by an amount that
       matters: `METRIC_FALL` or `DIVERSITY_FALL`; or a sign of the training is beyond its limit: the prediction's norm
       (`RATIO_LIMIT`), or pixels outside the range of a picture (`CLAMPED_RISE`).
    Every metric is taken as "higher is better"; distances to the base model are neither good nor bad. A single prompt
    has no p-value, so it raises nothing.
    """
    sentences, values = [], {}
    seen = signs.sentences() if signs is not None else []
    for result in results:
        gains = [name for name, weight in trained.items() if name in result.metrics and _gained(result, name, weight)]
        held_out = [name for name in result.metrics if name not in trained and not is_distance(name)]
        falls = [name for name in held_out if _fell(name, result.metrics[name], SIGNIFICANCE / len(held_out))]
        if not gains or not (falls or seen):
            continue
        changes = ", ".join(_change(name, result.metrics[name]) for name in [*gains, *falls])
        sentences.append(f"{result.name}: {changes}")
        for name in [*gains, *falls]:
            paired = result.metrics[name].paired
            if paired is not None:
                values[f"{result.name}/{name}"] = paired.difference
    if not sentences:
        return None
    fell = "held-out quality or diversity fell"
    text = f"possible reward hacking: the trained reward rose while {' and '.join(seen) or fell}. "
    advice = ". Look at the samples; a smaller reward_multiplier, fewer steps or a combined reward may help."
    return Notice("reward-hacking", text + "; ".join(sentences) + advice, step, values)


def _gained(result: EvaluationResult, name: str, weight: float) -> bool:
    paired = result.metrics[name].paired
    return (
        paired is not None
        and paired.p_value is not None
        and (paired.p_value < SIGNIFICANCE and paired.difference * weight > 0)
    )


def _fell(name: str, metric: Metric, significance: float) -> bool:
    paired = metric.paired
    if paired is None or paired.p_value is None or paired.p_value >= significance:
        return False
    return paired.difference < -_smallest_fall(name, metric)


def _smallest_fall(name: str, metric: Metric) -> float:
    """The fall that matters, in units of the metric."""
    base_mean = metric.mean - (metric.paired.difference if metric.paired else 0.0)
    if name.startswith(DIVERSITY):
        return DIVERSITY_FALL * abs(base_mean)
    return METRIC_FALL * (metric.standard_error or 0.0) * math.sqrt(len(metric.per_prompt))


def _change(name: str, metric: Metric) -> str:
    paired = metric.paired
    if paired is None or paired.standard_error is None:
        return name
    return f"{name} {paired.difference:+.3g} ± {paired.standard_error:.2g}"
