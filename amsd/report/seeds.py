"""Trials over their training seeds: what another training run would change."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from amsd.evaluation.result import Metric, Paired
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


def between(mine: Sequence[Metric], theirs: Sequence[Metric], alike: bool) -> tuple[Paired, bool]:
    """How far the runs of one setting lie above those of another, and whether they were compared prompt by prompt.

    Two single runs that were evaluated alike (same prompts and noise) are compared prompt by prompt, with a t-test.
    Several seeds, and runs without values of prompts, are compared by their means and standard errors.
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
    return Paired(own.mean - other.mean, error, None), False
