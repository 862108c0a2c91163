"""Which steps of a trajectory enter the loss: two strata of step indices (docs/method.md section 4).

Arithmetic without torch: the draw (`amsd.matching`) and the cost of a recipe (`amsd.recipe.cost`) both rest on it.
"""

from __future__ import annotations

#: Share of the steps, from the noisiest on, that gets the first half of the draws.
FIRST_STRATUM = 0.6


def strata(num_steps: int, count: int) -> tuple[tuple[range, int], tuple[range, int]]:
    """Two strata of step indices, and how many of `count` are drawn from each.

    Half (rounded down) comes from the first 60% of the steps; a stratum too small for its share passes the rest on.

    Raises:
        ValueError: more indices are asked for than there are steps.
    """
    if not 1 <= count <= num_steps:
        raise ValueError(f"count must lie between 1 and num_steps = {num_steps}, but got {count}")
    border = round(FIRST_STRATUM * num_steps)
    first, second = range(border), range(border, num_steps)
    from_first = min(count // 2, len(first))
    from_second = min(count - from_first, len(second))
    return (first, count - from_second), (second, from_second)


def stored_counts(num_steps: int, count: int, passes: int) -> tuple[tuple[range, int], tuple[range, int]]:
    """The strata, and how many distinct indices of each are drawn in `passes` passes of `count` indices each.

    A step is repeated only once its stratum is used up, so every distinct index counts once.
    """
    (first, a), (second, b) = strata(num_steps, count)
    return (first, min(a * passes, len(first))), (second, min(b * passes, len(second)))


def expected_smallest_index(num_steps: int, count: int, passes: int = 1) -> float:
    """E[min] of all indices drawn in `passes` passes: (n - k)/(k + 1) for k of 0 ... n-1 without replacement."""
    stratum, drawn = next((s, k) for s, k in stored_counts(num_steps, count, passes) if k)
    return stratum.start + (len(stratum) - drawn) / (drawn + 1)
