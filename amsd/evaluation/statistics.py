"""Means, standard errors and paired comparison over prompts (docs/method.md section 6)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from amsd.evaluation.result import Metric, Paired

_SMALLEST_PLAIN = -4
"""Exponent of the smallest numbers that are written without an exponent."""


def summarize(version: str, per_prompt: Sequence[float], base: Sequence[float] | None = None) -> Metric:
    """Aggregate per-prompt values (P,), and compare them with the base model's (P,) where given.

    Raises:
        ValueError: there are no values, or the base has another number of prompts.
    """
    paired = None if base is None else compare(per_prompt, base)
    return Metric(mean(per_prompt), standard_error(per_prompt), paired, tuple(per_prompt), version)


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean, summed exactly."""
    if not values:
        raise ValueError("the mean of no values is undefined")
    return math.fsum(values) / len(values)


def standard_error(values: Sequence[float]) -> float | None:
    """s.d. (ddof 1) / sqrt(P); None for a single value, where it is undefined."""
    count = len(values)
    if count < 2:
        return None
    center = mean(values)
    return math.sqrt(math.fsum((value - center) ** 2 for value in values) / (count - 1) / count)


def measured(value: float, error: float | None, sign: str = "") -> str:
    """`0.532 ± 0.012`: two digits of the standard error and the value to the same place; `sign` "+" shows it always.

    Numbers too small for that are `(1.20 ± 0.34)e-06`; without an error the value has four digits.
    """
    if not error:
        return f"{value:{sign}.4g}" + ("" if error is None else " ± 0")
    decimals = max(0, 1 - math.floor(math.log10(error)))
    exponent = math.floor(math.log10(max(abs(value), error)))
    if exponent < _SMALLEST_PLAIN and decimals > 1 - _SMALLEST_PLAIN:
        return f"({_pair(value / 10**exponent, error / 10**exponent, decimals + exponent, sign)})e{exponent:03d}"
    return _pair(value, error, decimals, sign)


def _pair(value: float, error: float, decimals: int, sign: str) -> str:
    return f"{round(value, decimals) + 0.0:{sign}.{decimals}f} ± {error:.{decimals}f}"  # + 0.0: no minus before zero


def compare(values: Sequence[float], base: Sequence[float]) -> Paired:
    """Difference per prompt (P,) to the base model's values (P,), with its standard error and test.

    Raises:
        ValueError: the numbers of prompts differ, or there are none.
    """
    if len(values) != len(base):
        raise ValueError(f"{len(values)} prompts cannot be paired with {len(base)}")
    return tested([value - reference for value, reference in zip(values, base, strict=True)])


def tested(differences: Sequence[float]) -> Paired:
    """Mean of paired differences (n,), its standard error and the two-sided p-value of scipy's t-test against zero.

    Equal differences have no spread: p is 1 if they are all zero, else 0. A single one has neither error nor p.

    Raises:
        ValueError: there are no differences.
    """
    difference, error = mean(differences), standard_error(differences)
    if error is None:
        return Paired(difference, None, None)
    if error == 0:
        return Paired(difference, 0.0, 1.0 if difference == 0 else 0.0)
    from scipy.stats import ttest_1samp

    return Paired(difference, error, float(ttest_1samp(differences, 0.0).pvalue))
