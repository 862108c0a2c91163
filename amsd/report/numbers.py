"""Numbers in words: a mean with its standard error, a p-value, a duration, a count, the value of a searched key."""

from __future__ import annotations

import math
import re

from amsd.evaluation.result import Metric, Paired
from amsd.evaluation.statistics import measured
from amsd.report.figures.scale import MINUS, number

_EXPONENT = re.compile(rf"e([+{MINUS}-]?\d+)$")
_RAISED = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def with_error(metric: Metric) -> str:
    """`0.532 ± 0.012`: two digits of the error, and the mean to the same decimal."""
    return _pair(metric.mean, metric.standard_error)


def difference(paired: Paired) -> str:
    """`+0.21 ± 0.02`."""
    return _pair(paired.difference, paired.standard_error, "+")


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


def counted(count: int, noun: str) -> str:
    """`1 run`, `3 runs`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def plain(value: object) -> str:
    """The value of a searched key; booleans as TOML writes them."""
    if isinstance(value, bool):
        return str(value).lower()
    return number(value) if isinstance(value, (int, float)) else str(value)


def _pair(mean: float, error: float | None, sign: str = "") -> str:
    if not error:
        return (sign if mean > 0 else "") + number(mean)
    return powers(measured(mean, error, sign))


def powers(text: str) -> str:
    """A number with a true minus sign, and its exponent as a power of ten: `(1.2 ± 0.3) × 10⁻⁵`."""
    text = text.replace("-", MINUS)
    return _EXPONENT.sub(lambda found: f" × 10{str(int(found[1].replace(MINUS, '-'))).translate(_RAISED)}", text)
