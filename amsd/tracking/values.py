"""Evaluation results as the flat scalars that every tracker logs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from amsd.evaluation.result import EvaluationResult


def evaluation_values(result: EvaluationResult, prefix: str = "eval") -> dict[str, float]:
    """Flat names to values of one evaluation: `<prefix>/<metric>` is the mean over prompts.

    Beside it, where they exist: `/standard_error` of that mean and, against the base model on the same prompts and
    noise, `/difference`, `/difference_standard_error` and `/p_value` (two-sided paired t-test).
    """
    values: dict[str, float | None] = {}
    for name, metric in result.metrics.items():
        key = f"{prefix}/{name}"
        values[key] = metric.mean
        values[f"{key}/standard_error"] = metric.standard_error
        if metric.paired is not None:
            values[f"{key}/difference"] = metric.paired.difference
            values[f"{key}/difference_standard_error"] = metric.paired.standard_error
            values[f"{key}/p_value"] = metric.paired.p_value
    return {key: value for key, value in values.items() if value is not None}
