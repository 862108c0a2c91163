"""The story of several runs side by side: what they have in common, what differs, and who is ahead."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from amsd.errors import UsageError
from amsd.places import in_text, published
from amsd.report.data import Run, is_run, named_together, read_run
from amsd.report.figures.svg import MARKS
from amsd.report.numbers import counted
from amsd.report.story import Group, ShownRun, Story, chosen_metrics, metric_names, run_state, shown_settings
from amsd.tracking.progress import Report, silent

#: Seeds are repetitions of one setting; the tracker changes nothing.
_SEED, _ASIDE = "training.seed", "tracking."
#: A name as `amsd.run_directory.default_output` gives it.
_GIVEN = re.compile(
    r"(?P<recipe>.+)-(?P<settings>[^-]+-lr[^-]+(?:-\d+)?-eta[^-]+-cfg[^-]+-seed\d+)-(?P<identity>[0-9a-f]{12})(?P<number>-\d+)?"
)
ABSENT = "–"


@dataclass(frozen=True)
class Difference:
    """A setting that is not the same in all groups."""

    key: str
    values: tuple[str, ...]
    """By group, in words."""


def comparison_story(sources: Sequence[Path | str], report: Report = silent) -> Story:
    """The story of several runs; the first one is what the others are compared with.

    Raises:
        UsageError: a source is no run, or named twice, or the runs have more settings than a page has colors.
    """
    paths = [Path(source) for source in sources]
    _require_runs(paths)
    read = []
    for number, path in enumerate(paths, 1):
        read.append(read_run(path))
        report("reading runs", number, len(paths))
    runs = named_together(read)
    flat = [_settings(run) for run in runs]
    groups = _groups(flat)
    if len(set(groups)) > len(MARKS):
        raise UsageError(
            f"These runs have {len(set(groups))} different settings, and a comparison shows at most {len(MARKS)}. "
            "Runs that differ only in their training seed count once. Name fewer runs, or report on a sweep."
        )
    labels = _labels(runs)
    differing = _differing(flat, groups)
    kinds = [_group(index, groups, labels, differing) for index in range(max(groups) + 1)]
    entries = tuple(
        ShownRun(
            f"r{place}", labels[place], run_state(run), None, _params(differing, kind), run,
            trial=kind, seed=run.recipe.training.seed if run.recipe is not None else None, group=kinds[kind],
        )
        for place, (run, kind) in enumerate(zip(runs, groups, strict=True))
    )  # fmt: skip
    reward, diversity, setting = _common_metrics(runs)
    home = Path(os.path.commonpath([path.resolve().parent for path in paths]))
    story = Story("comparison", f"{len(runs)} runs", home, entries, reward, diversity, setting)
    return replace(story, gaps=tuple(in_text(gap, [home]) for gap in _gaps(story)))


def differences(story: Story) -> list[Difference]:
    """Settings that are not the same in all groups of a comparison; those of the tracker are left out."""
    flat = [_settings(entry.run) for entry in story.entries if entry.run is not None]
    return _differing(flat, [entry.trial or 0 for entry in story.entries])


def _require_runs(paths: Sequence[Path]) -> None:
    seen: set[Path] = set()
    for path in paths:
        if not path.is_dir():
            what = "is a file" if path.exists() else "no such folder"
            raise UsageError(f"{path}: {what}; give run directories to compare")
        if not is_run(path):
            raise UsageError(
                f"{path}: not a run. A comparison takes runs; report on a sweep alone, or name its runs "
                f"({path}/trials/*/seed-*/run)."
            )
        if path.resolve() in seen:
            raise UsageError(f"{path} is named twice; name each run once")
        seen.add(path.resolve())


def _settings(run: Run) -> dict[str, Any]:
    """Recipe key -> value, without what lies on this machine; empty where the recipe is unknown."""
    if run.recipe is None:
        return {}
    return {key: value for key, value in _flat(published(run.recipe)) if not key.startswith(_ASIDE)}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and any(isinstance(each, Mapping) for each in value):
            for place, each in enumerate(value, 1):
                yield from _flat(each, f"{prefix}{key} {place}.")
        else:
            yield f"{prefix}{key}", value


def _groups(flat: Sequence[Mapping[str, Any]]) -> list[int]:
    """For each run the number of its group, by first appearance.

    Runs without a recipe stand alone, and so does a run whose settings and seed are those of another: somebody wants
    to see these two beside each other.
    """
    known: dict[str, int] = {}
    seen: Counter[str] = Counter()
    found = []
    for place, settings in enumerate(flat):
        kind = json.dumps({k: v for k, v in settings.items() if k != _SEED}, sort_keys=True) if settings else str(place)
        repeated = f"{kind} {settings.get(_SEED)}"
        found.append(known.setdefault(f"{kind} {seen[repeated]}", len(known)))
        seen[repeated] += 1
    return found


def _differing(flat: Sequence[Mapping[str, Any]], groups: Sequence[int]) -> list[Difference]:
    keys = dict.fromkeys(itertools.chain.from_iterable(flat))
    found = []
    for key in keys:
        values: list[dict[str, None]] = [{} for _ in range(max(groups) + 1)]
        for settings, kind in zip(flat, groups, strict=True):
            values[kind][_word(settings[key]) if key in settings else ABSENT] = None
        words = tuple(", ".join(each) for each in values)
        if len(set(words)) > 1:
            found.append(Difference(key, words))
    return found


def _word(value: Any) -> str:
    if value is None:
        return ABSENT
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def _labels(runs: Sequence[Run]) -> list[str]:
    """A short name for each run that no other has: the tracker's, the folder's, or as much of the path as it takes."""
    names = [
        run.recipe.tracking.name if run.recipe is not None and run.recipe.tracking.name else run.path.resolve().name
        for run in runs
    ]
    parts = [run.path.resolve().parts for run in runs]
    length = 1
    while len(set(names)) < len(names):
        length += 1
        names = ["/".join(each[-length:]) for each in parts]
    return _brief(names)


def _brief(names: Sequence[str]) -> list[str]:
    """Names that `default_output` gave, without the settings that all of them share; other names as they are.

    `shapes-lambda50-lr0.0004-eta1-cfg1-seed0-b6d42301f2e0-2` beside one of another lambda is `shapes-lambda50-2`.
    A part of the identity stays where nothing else tells two runs apart.
    """
    found = {name: match for name in names if (match := _GIVEN.fullmatch(name))}
    if len(found) < 2:
        return list(names)
    settings = {name: re.split(r"-(?=[a-z])", match["settings"]) for name, match in found.items()}
    shared = set.intersection(*map(set, settings.values()))

    def brief(name: str, identity: int) -> str:
        if name not in found:
            return name
        own = [word for word in settings[name] if word not in shared]
        number = found[name]["number"] or ""
        return "-".join([found[name]["recipe"], *own, *[found[name]["identity"][:identity]] * bool(identity)]) + number

    short = [brief(name, 0) for name in names]
    return short if len({*short}) == len(short) else [brief(name, 6) for name in names]


def _group(index: int, groups: Sequence[int], labels: Sequence[str], differing: Sequence[Difference]) -> Group:
    own = [label for label, kind in zip(labels, groups, strict=True) if kind == index]
    name = own[0] if len(own) == 1 else f"{own[0]} ({len(own)} seeds)"
    words = [f"{key.rpartition('.')[2]} = {value}" for key, value in _params(differing, index).items()]
    return Group(index, name, ", ".join(words) or "the same settings")


def _params(differing: Sequence[Difference], index: int) -> dict[str, str]:
    """What tells a group from the others, as a sentence names it."""
    return {each.key: each.values[index] for each in differing if each.key != _SEED}


def _common_metrics(runs: Sequence[Run]) -> tuple[str, str | None, str | None]:
    """The metrics that figures show: those that every run was evaluated with come first."""
    reward, diversity, setting = chosen_metrics(runs)
    shared = [name for name in metric_names(runs) if all(name in metric_names([run]) for run in runs)]
    others = [name for name in shared if name != diversity]
    return (reward if reward in shared or not others else others[0]), diversity, setting


def _gaps(story: Story) -> Iterator[str]:
    for entry in story.entries:
        if entry.run is not None:
            yield from (f"{entry.label}: {gap}" for gap in entry.run.gaps)
    settings = shown_settings(story)
    if len(settings) > 1:
        words = ", ".join(f"{name} ({counted(count, 'run')})" for name, count in settings.items())
        yield (
            f"The runs were evaluated under different settings, so they cannot be compared prompt by prompt: {words}. "
            "`amsd eval RUN --set evaluation...` evaluates a run under the setting of another."
        )
    without = [entry.label for entry in story.entries if entry.run and story.reward not in metric_names([entry.run])]
    if without:
        yield f"Not evaluated with {story.reward}: {', '.join(without)}."
