"""What is logged of an optimizer step: helpers for the values of a method, over the global batch.

Every function exchanges numbers between processes: all of them must call it.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from amsd.training import processes


def gathered(values: Tensor) -> Tensor:
    """The rows of all processes (B, ...), float64 on the CPU, from this process's (b, ...)."""
    return processes.gather_rows(values.cpu().double())


def means(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Mean of each value over the rows of all processes, under its own name."""
    return {name: float(gathered(value).mean()) for name, value in values.items()}


def reward_values(rewards: Tensor, terms: Mapping[str, Tensor], rows: Tensor | None = None) -> dict[str, float]:
    """Mean and standard deviation of rewards (b,), and the mean of each term (only of `rows`, if given)."""
    everything = gathered(rewards)
    values = {"reward/mean": float(everything.mean()), "reward/std": float(everything.std(correction=0))}
    used = {f"reward/{name}": term if rows is None else term[rows] for name, term in terms.items()}
    return values | means(used)
