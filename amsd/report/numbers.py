"""Numbers in words: a mean with its standard error, a p-value, a duration."""

from __future__ import annotations

import math

from amsd.evaluation.result import Metric, Paired
from amsd.evaluation.statistics import measured
from amsd.report.figures.scale import MINUS, number


def with_error(metric: Metric) -> str:
    """`0.532 ± 0.012`: two digits of the error, and the mean to the same decimal."""
    return _pair(metric.mean, metric.standard_error)


def difference(paired: Paired) -> str:
    """`+0.21 ± 0.02`."""
    text = _pair(paired.difference, paired.standard_error)
    return text if text.startswith(MINUS) else f"+{text}"


def p_value(value: float | None) -> str:
    """`p < 0.001`, `p = 0.03`, or a dash where it is unknown."""
    if value is None:
        return "–"
    if value < 0.001:
        return "p < 0.001"
    return f"p = {value:.3f}" if value < 0.01 else f"p = {value:.2f}"


def duration(seconds: float | None) -> str:
    """`48 s`, `12 min`, `3 h 05 min`."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def _pair(mean: float, error: float | None) -> str:
    return measured(mean, error).replace("-", MINUS) if error else number(mean)
