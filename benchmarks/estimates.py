"""What several benchmarks say of repeated measurements: a mean with its standard error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error."""

    value: float
    standard_error: float

    def shown(self, sign: str = "", digits: int = 3) -> str:
        """`value ± error`."""
        return f"{self.value:{sign}.{digits}f} ± {self.standard_error:.{digits}f}"


def estimate(values: Sequence[Sequence[float]]) -> Estimate:
    """Mean of values by seed and prompt. All seeds share the prompts.

    The error is that between seeds (none for a single one) and that between prompts after averaging over seeds.
    """
    by_prompt = [mean(of_prompt) for of_prompt in zip(*values, strict=True)]
    between = over_seeds([mean(of_seed) for of_seed in values])
    return Estimate(between.value, math.hypot(between.standard_error, stdev(by_prompt) / math.sqrt(len(by_prompt))))


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean of one number of each seed; the error of a single one is 0."""
    return Estimate(mean(values), stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0)
