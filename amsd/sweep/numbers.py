"""A measured number in words."""

from __future__ import annotations

import math


def measured(value: float, error: float | None) -> str:
    """`0.532 ± 0.012`: two digits of the standard error, and the value to the same decimal."""
    if not error:
        return f"{value:.4g}"
    decimals = min(8, max(0, 1 - math.floor(math.log10(error))))
    return f"{round(value, decimals) + 0.0:.{decimals}f} ± {error:.{decimals}f}"  # + 0.0: no minus before zero
