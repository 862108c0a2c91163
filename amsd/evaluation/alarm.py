"""Reward hacking: the trained reward rises while what was not trained on falls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from amsd.evaluation.result import DIVERSITY, EvaluationResult, Metric, is_distance
from amsd.training.events import Notice

SIGNIFICANCE = 0.01
"""Two-sided p-value of the paired t-test below which a change counts; shared by the held-out metrics (Bonferroni)."""
METRIC_FALL = 0.2
"""Smallest fall of a held-out metric that matters, in s.d. of its values over prompts."""
DIVERSITY_FALL = 0.1
"""Smallest fall of a diversity that matters, as a share of the base model's."""


def reward_hacking(results: Sequence[EvaluationResult], trained: Mapping[str, float], step: int = 0) -> Notice | None:
    """The alarm of a checkpoint, or None. `trained` gives the weight of each trained reward by name.

    It is raised if, under one and the same setting, both hold against the base model:
    1. a trained reward has changed in the direction of its weight, p < `SIGNIFICANCE`;
    2. a held-out metric or a diversity has fallen, p < `SIGNIFICANCE` divided by their number, by an amount that
       matters: `METRIC_FALL` or `DIVERSITY_FALL`.
    Every metric is taken as "higher is better"; distances to the base model are neither good nor bad. A single prompt
    has no p-value, so it raises nothing.
    """
    sentences, values = [], {}
    for result in results:
        gains = [name for name, weight in trained.items() if name in result.metrics and _gained(result, name, weight)]
        held_out = [name for name in result.metrics if name not in trained and not is_distance(name)]
        falls = [name for name in held_out if _fell(name, result.metrics[name], SIGNIFICANCE / len(held_out))]
        if not gains or not falls:
            continue
        changes = ", ".join(_change(name, result.metrics[name]) for name in [*gains, *falls])
        sentences.append(f"{result.name}: {changes}")
        for name in [*gains, *falls]:
            paired = result.metrics[name].paired
            if paired is not None:
                values[f"{result.name}/{name}"] = paired.difference
    if not sentences:
        return None
    text = "possible reward hacking: the trained reward rose while held-out quality or diversity fell. "
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
