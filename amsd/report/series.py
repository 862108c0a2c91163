"""Which results of a run belong on one curve, and what the curves are called.

Results belong together if they differ in their weights only: same prompts, noise, sampler, libraries, base model and
scorers. A run that was evaluated again under other conditions has several series under one sampler setting; their
names say what differs. Results of format 1, and lines of the log without a key, are sorted by their content.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from amsd.evaluation.identity import identity
from amsd.evaluation.result import EvaluationResult, base_weights, conditions

#: Parts of the conditions that the name of the setting says already.
_IN_THE_NAME = ("name", "eta", "scheduler", "guidance_scale", "num_inference_steps")
_SHOWN = 4


@dataclass(frozen=True, eq=False)
class Found:
    """A result of a run, from a file or from the log."""

    step: int
    """0: the base model."""
    result: EvaluationResult
    stem: str = ""
    """Stem of its file; empty for a line of the log."""

    @property
    def logged(self) -> bool:
        """Whether it comes from the log."""
        return not self.stem


@dataclass(frozen=True)
class Series:
    """Results of one run that differ in their weights only."""

    name: str
    setting: str
    conditions: Mapping[str, str]
    """What the results share, flattened to words; empty where only the log is left."""
    logged: bool
    """Whether the run's own log has them: it is what training evaluated."""


@dataclass(frozen=True)
class Sorted:
    """Results with their series."""

    series: Mapping[str, Series]
    """By identity."""
    members: Mapping[Found, str]
    """Identity of the series of each result."""

    def results(self, step: int) -> dict[str, EvaluationResult]:
        """By series, what is known at a step: the metrics of several files together, the log where there is none."""
        found: dict[str, EvaluationResult] = {}
        mine = [(each, name) for each, name in self.members.items() if each.step == step]
        for each, name in sorted(mine, key=lambda pair: not pair[0].logged):
            before = found.get(name)
            if before is None or not before.prompts:  # a file says more than the log
                found[name] = each.result
            else:
                found[name] = replace(each.result, metrics={**before.metrics, **each.result.metrics})
        return found

    def of_pictures(self, step: int, folder: str) -> str:
        """The series of a folder of pictures: that of the file beside it, else of any file or setting of its name."""
        files = {each.stem: name for each, name in self.members.items() if not each.logged}
        here = {each.stem: name for each, name in self.members.items() if not each.logged and each.step == step}
        settings = {each.setting: name for name, each in reversed(list(self.series.items()))}
        return here.get(folder) or files.get(folder) or settings.get(folder) or folder


def sort(found: Sequence[Found], planned: Sequence[str]) -> Sorted:
    """Tell which results belong together; `planned` are the settings of the recipe, in its order."""
    files = [each for each in found if not each.logged]
    members = dict(zip(files, _by_content(files), strict=True))
    keys = {each.result.key: name for each, name in members.items() if each.result.key}
    lines = [each for each in found if each.logged]
    for line in (each for each in lines if each.result.key):
        members[line] = keys.get(line.result.key, f"{line.result.name}-{line.result.key}")
    for setting in dict.fromkeys(each.result.name for each in lines if not each.result.key):
        older = [each for each in lines if not each.result.key and each.result.name == setting]
        name = _matching(older, members)
        members |= dict.fromkeys(older, name)
    return Sorted(_ordered(members, planned), members)


def named(runs: Sequence[Mapping[str, Series]]) -> dict[str, str]:
    """Identity of each series -> its name: the setting, and what tells series of one setting apart."""
    every: dict[str, Series] = {}
    for series in runs:
        every = {**series, **every}
    names: dict[str, str] = {}
    for setting in dict.fromkeys(series.setting for series in every.values()):
        alike = {name: series for name, series in every.items() if series.setting == setting}
        names |= _told_apart(setting, alike)
    return names


def _by_content(files: Sequence[Found]) -> list[str]:
    """Identity of the series of each file: its images' conditions, and the scorers' versions where they differ."""
    images = [_images(each.result) for each in files]
    versions: dict[tuple[str, str], set[str]] = {}
    for each, shared in zip(files, images, strict=True):
        for name, metric in each.result.metrics.items():
            versions.setdefault((shared, name), set()).add(metric.version)
    unlike = [
        {name: metric.version for name, metric in each.result.metrics.items() if len(versions[shared, name]) > 1}
        for each, shared in zip(files, images, strict=True)
    ]
    names = [f"{shared}-{identity(mine)[:8]}" if mine else "" for shared, mine in zip(images, unlike, strict=True)]
    # A file without any of the metrics in doubt belongs to whichever series is longest.
    counts = Counter((shared, name) for shared, name in zip(images, names, strict=True) if name)
    longest = {shared: name for (shared, name), _ in reversed(counts.most_common())}
    return [name or longest.get(shared, shared) for name, shared in zip(names, images, strict=True)]


def _images(result: EvaluationResult) -> str:
    shared = {"conditions": conditions(result.settings), "prompts": result.prompts, "base": base_weights(result)}
    return f"{result.name}-{identity(shared)[:8]}"


def _matching(lines: Sequence[Found], files: Mapping[Found, str]) -> str:
    """The series of lines that carry no key: the one whose values they repeat, else one of their own."""
    setting = lines[0].result.name
    candidates = list(dict.fromkeys(name for each, name in files.items() if each.result.name == setting))
    votes = {name: _agreement(lines, [each for each, other in files.items() if other == name]) for name in candidates}
    best = max(candidates, key=lambda name: votes[name][0] - votes[name][1], default=None)
    if best is None or (votes[best][1] and not votes[best][0]):
        return setting
    return best


def _agreement(lines: Sequence[Found], files: Sequence[Found]) -> tuple[int, int]:
    """At how many steps files repeat the values of the log, and at how many they contradict them."""
    by_step = {each.step: each.result for each in files}
    agree = contradict = 0
    for line in lines:
        if (other := by_step.get(line.step)) is None:
            continue
        common = line.result.metrics.keys() & other.metrics.keys()
        same = all(math.isclose(line.result.metrics[n].mean, other.metrics[n].mean, rel_tol=1e-9) for n in common)
        agree, contradict = agree + same, contradict + (not same)
    return agree, contradict


def _ordered(members: Mapping[Found, str], planned: Sequence[str]) -> dict[str, Series]:
    """Series in the recipe's order of settings; of one setting what training evaluated first, then the longest."""
    logged = {name for each, name in members.items() if each.logged}
    count = Counter(name for each, name in members.items() if not each.logged)
    known: dict[str, Series] = {}
    for each, name in members.items():
        words = {} if each.logged else _words(each.result)
        before = known.get(name, Series(name, each.result.name, {}, name in logged))
        known[name] = replace(before, conditions={**words, **before.conditions})  # files come first, and know most
    place = {setting: index for index, setting in enumerate(planned)}

    def order(name: str) -> tuple[int, str, bool, int, str]:
        series = known[name]
        position = place.get(series.setting, len(place))
        return position, series.setting, not series.logged, -count[name], name

    return {name: known[name] for name in sorted(known, key=order)}


def _words(result: EvaluationResult) -> dict[str, str]:
    """What determines a result, flattened to words by key."""
    plain = {key: value for key, value in conditions(result.settings).items() if key not in _IN_THE_NAME}
    words = dict(_flat(plain))
    words["prompts"] = f"{len(result.prompts)} prompts"
    words["prompt texts"] = f"prompts {identity(list(result.prompts))[:6]}"
    words["base"] = f"base {base_weights(result)[:8]}"
    words |= {f"scorer {n}": f"{n} version {m.version[:12]}" for n, m in result.metrics.items() if m.version}
    return words


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif key == "samples_per_prompt":
            yield f"{prefix}{key}", f"{value} samples"
        else:
            yield f"{prefix}{key}", f"{key} {value}"


def _told_apart(setting: str, alike: Mapping[str, Series]) -> dict[str, str]:
    """Names of the series of one setting."""
    if len(alike) == 1:
        return dict.fromkeys(alike, setting)
    known = [series.conditions for series in alike.values() if series.conditions]
    keys = [key for key in dict.fromkeys(key for words in known for key in words)
            if len({words.get(key) for words in known}) > 1]  # fmt: skip
    if "prompts" in keys:
        keys.remove("prompt texts")  # follows from their number
    # A scorer that only some results have does not tell them apart.
    keys = [key for key in keys if not (key.startswith("scorer ") and any(key not in words for words in known))]
    first = [key for key in ("prompts", "prompt texts", "samples_per_prompt", "seed") if key in keys]
    keys = [*first, *(key for key in keys if key not in first)]
    names = {name: _name(setting, series, keys) for name, series in alike.items()}
    counts = Counter(names.values())
    return {name: text if counts[text] == 1 else f"{text} ({name[-8:]})" for name, text in names.items()}


def _name(setting: str, series: Series, keys: Sequence[str]) -> str:
    if not series.conditions:
        return f"{setting} · as logged"
    found = [series.conditions[key] for key in keys if key in series.conditions]
    shown = found[:_SHOWN] + (["…"] if len(found) > _SHOWN else [])
    return f"{setting} · {', '.join(shown)}"
