"""Trials over their training seeds: what another training run would change."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from amsd.evaluation.result import Metric, Paired
from amsd.evaluation.statistics import mean, standard_error, tested
from amsd.report.story import EvaluatedPoint, ShownRun, Story, points


def by_trial(story: Story) -> dict[int, list[tuple[ShownRun, EvaluatedPoint]]]:
    """Trial number -> its runs with their last evaluated checkpoints; trials without any are left out."""
    groups: dict[int, list[tuple[ShownRun, EvaluatedPoint]]] = {}
    for entry in story.entries:
        found = points(story, entry.run)
        if found and entry.trial is not None:
            groups.setdefault(entry.trial, []).append((entry, found[-1]))
    return groups


def over_seeds(metrics: Iterable[Metric | None]) -> Metric | None:
    """Mean with its standard error over runs, and the mean of their paired differences with a t-test over runs.

    One run alone keeps its own error and test, which are over prompts. None where nothing is known.
    """
    known = [metric for metric in metrics if metric is not None]
    if not known:
        return None
    if len(known) == 1:
        return known[0]
    means = [metric.mean for metric in known]
    differences = [metric.paired.difference for metric in known if metric.paired is not None]
    paired = tested(differences) if len(differences) == len(known) else None
    return Metric(mean(means), standard_error(means), paired)


def between(mine: Sequence[Metric], theirs: Sequence[Metric], alike: bool) -> tuple[Paired, bool]:
    """How far the runs of one setting lie above those of another, and whether they were compared prompt by prompt.

    Two single runs that were evaluated alike (same prompts and noise) are compared prompt by prompt, with a t-test.
    Two settings of several seeds each, evaluated alike, are compared by Welch's t-test over seeds. All others are
    compared by their means and standard errors, without a test.
    """
    if alike and len(mine) == len(theirs) == 1:
        values = mine[0].per_prompt, theirs[0].per_prompt
        if len(values[0]) == len(values[1]) > 1:
            return tested([a - b for a, b in zip(*values, strict=True)]), True
    own, other = over_seeds(mine), over_seeds(theirs)
    assert own is not None
    assert other is not None
    errors = own.standard_error, other.standard_error
    error = None if None in errors else math.hypot(*(value or 0.0 for value in errors))
    found = Paired(own.mean - other.mean, error, None)
    return (replace(found, p_value=_welch(own, len(mine), other, len(theirs))) if alike else found), False


def _welch(own: Metric, count: int, other: Metric, others: int) -> float | None:
    """Two-sided p-value of Welch's t-test between the means of two sets of runs; None where one has a single run."""
    if min(count, others) < 2 or own.standard_error is None or other.standard_error is None:
        return None
    if own.standard_error == other.standard_error == 0:
        return 1.0 if own.mean == other.mean else 0.0
    from scipy.stats import ttest_ind_from_stats

    spreads = own.standard_error * math.sqrt(count), other.standard_error * math.sqrt(others)
    test = ttest_ind_from_stats(own.mean, spreads[0], count, other.mean, spreads[1], others, equal_var=False)
    return float(test.pvalue)
