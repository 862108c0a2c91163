"""Trials over their training seeds: what another training run would change."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from amsd.report.evaluations import Metric, Paired
from amsd.report.story import Entry, Point, Story, points


def by_trial(story: Story) -> dict[int, list[tuple[Entry, Point]]]:
    """Trial number -> its runs with their last evaluated checkpoints; trials without any are left out."""
    groups: dict[int, list[tuple[Entry, Point]]] = {}
    for entry in story.entries:
        found = points(story, entry.run) if entry.run is not None else []
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
    mean, error = _mean([metric.mean for metric in known])
    differences = [metric.paired.difference for metric in known if metric.paired is not None]
    if len(differences) < len(known):
        return Metric(mean, error)
    return Metric(mean, error, Paired(*_mean(differences), paired_test(differences)))


def _mean(values: Sequence[float]) -> tuple[float, float | None]:
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return statistics.fmean(values), error


def paired_test(differences: Sequence[float]) -> float | None:
    """p of a two-sided t-test of the differences against zero; None where it is undefined."""
    if len(differences) < 2 or statistics.stdev(differences) == 0:
        return None
    from scipy.stats import ttest_1samp

    return float(ttest_1samp(differences, 0.0).pvalue)
