"""Trials over their training seeds: what another training run would change."""

from __future__ import annotations

from collections.abc import Iterable

from amsd.evaluation.result import Metric
from amsd.evaluation.statistics import mean, standard_error, tested
from amsd.report.story import EvaluatedPoint, ShownRun, Story, points


def by_trial(story: Story) -> dict[int, list[tuple[ShownRun, EvaluatedPoint]]]:
    """Trial number -> its runs with their last evaluated checkpoints; trials without any are left out."""
    groups: dict[int, list[tuple[ShownRun, EvaluatedPoint]]] = {}
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
    means = [metric.mean for metric in known]
    differences = [metric.paired.difference for metric in known if metric.paired is not None]
    paired = tested(differences) if len(differences) == len(known) else None
    return Metric(mean(means), standard_error(means), paired)
