"""What a report tells, independent of whether a page or a W&B Report tells it."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from amsd.evaluation.result import DIVERSITY, FID, KID, EvaluationResult, Metric, is_distance
from amsd.places import in_text
from amsd.recipe.guidance_modes import GuidanceMode, mode_of
from amsd.report.data import Checkpoint, Run, load_run

#: Logged steps over which the KL divergence at a checkpoint is averaged.
KL_WINDOW = 5


#: Color of what belongs to no kind.
NO_HUE = 9


@dataclass(frozen=True)
class Group:
    """Runs of a comparison that differ in their training seed only."""

    index: int
    """Place on the page; it chooses color and shape of the marks."""
    name: str
    explanation: str
    """What tells it from the other groups."""


@dataclass(frozen=True)
class ShownRun:
    """One run of the report: the run itself, or a trial of a sweep."""

    key: str
    """Short name that is unique on the page, such as `t12`."""
    label: str
    state: str
    """`complete`, `running`, `pruned`, `failed`, `queued`, `stopped`."""
    mode: GuidanceMode | None
    params: Mapping[str, Any]
    """Searched keys and their values; empty for a single run."""
    run: Run | None
    """None for a trial without a run directory."""
    values: tuple[float, ...] = ()
    """Values of the objectives."""
    objective: float | None = None
    """The first objective of the whole trial, over its seeds."""
    started: float | None = None
    """When the trial's latest attempt began, Unix time in seconds."""
    ended: float | None = None
    """When it ended; of a running trial, now."""
    duration: float | None = None
    """Seconds."""
    error: str | None = None
    trial: int | None = None
    """Number of the trial, or of the group of a comparison; its seeds are entries of their own."""
    seed: int | None = None
    copy_of: int | None = None
    """The trial whose identical run was taken over."""
    feasible: bool = True
    """Whether it keeps the constraints of the sweep."""
    folder: str = ""
    """Address of its folder, from the sweep's folder where it lies inside; empty where it is not on this machine."""
    group: Group | None = None
    """Of a comparison: the runs that differ in their training seed only."""

    @property
    def hue(self) -> int:
        """Number of the color and shape of its marks: those of its group, or of its guidance mode."""
        kind = self.group or self.mode
        return kind.index if kind is not None else NO_HUE


@dataclass(frozen=True)
class Axis:
    """One searched key."""

    key: str
    values: tuple[Any, ...]
    """The distinct values that trials took; numbers ascending."""
    description: str
    log: bool = False
    """Whether it was searched on a logarithmic scale."""
    choices: bool = False
    """Whether only these values could be taken."""

    @property
    def numeric(self) -> bool:
        """Whether values have an order and distances (booleans have not)."""
        return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in self.values)


@dataclass(frozen=True)
class Goal:
    """What a sweep optimizes."""

    name: str
    maximize: bool


@dataclass(frozen=True)
class Story:
    """Everything a report shows."""

    kind: Literal["run", "sweep", "comparison"]
    title: str
    path: Path
    entries: tuple[ShownRun, ...]
    reward: str
    """Name of the metric that stands for the reward."""
    diversity: str | None
    """Name of the metric that stands for the diversity."""
    setting: str | None
    """Evaluation setting that figures show; a run without it shows its own first one (`setting_of`)."""
    axes: tuple[Axis, ...] = ()
    objectives: tuple[Goal, ...] = ()
    importance: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Share of the first objective's variation that each searched key explains, with its standard error over trials;
    empty where there are too few trials to tell."""
    constraints: tuple[str, ...] = ()
    """Such as `train/kl at most 100`."""
    gaps: tuple[str, ...] = ()
    description: str = ""

    @property
    def runs(self) -> tuple[Run, ...]:
        """Run directories of the report."""
        return tuple(entry.run for entry in self.entries if entry.run is not None)

    @property
    def settings(self) -> tuple[str, ...]:
        """Evaluation settings that occur in any run, in order of appearance."""
        return tuple(dict.fromkeys(name for run in self.runs for name in run.settings))

    @property
    def held_out(self) -> tuple[str, ...]:
        """Evaluated metrics that are neither the reward, nor trained on, nor a diversity or a distance to the base."""
        trained = {term.name for run in self.runs if run.recipe is not None for term in run.recipe.reward}
        own = trained | {self.reward}
        return tuple(n for n in metric_names(self.runs) if n not in own and not n.startswith((DIVERSITY, KID, FID)))

    @property
    def distances(self) -> tuple[str, ...]:
        """Evaluated distances to the base model's images."""
        return tuple(name for name in metric_names(self.runs) if is_distance(name))

    @property
    def legend(self) -> tuple[Group | GuidanceMode, ...]:
        """What the colors and shapes of the marks mean: groups of a comparison, else guidance modes."""
        return self.groups or self.modes

    @property
    def groups(self) -> tuple[Group, ...]:
        """Groups of a comparison."""
        return tuple(dict.fromkeys(entry.group for entry in self.entries if entry.group is not None))

    @property
    def modes(self) -> tuple[GuidanceMode, ...]:
        """Guidance modes that occur, in their fixed order."""
        found = {entry.mode.index: entry.mode for entry in self.entries if entry.mode is not None}
        return tuple(mode for _, mode in sorted(found.items()))


@dataclass(frozen=True)
class EvaluatedPoint:
    """One evaluated checkpoint, as the trade-off figures need it."""

    step: int
    reward: Metric
    diversity: Metric | None
    kl: Metric | None
    """KL(fine-tuned || base) of the path law in nats: mean and standard error over the last logged steps."""
    others: Mapping[str, Metric] = field(default_factory=dict)
    """Every metric by name."""


def run_story(path: Path) -> Story:
    """The story of a single run.

    Raises:
        UsageError: there is no run.
    """
    run = load_run(path)
    given = run.recipe.tracking.name if run.recipe is not None else None
    title = given or path.resolve().name  # a sweep's runs are all in folders named `run`
    entry = ShownRun("run", title, run_state(run), run_mode(run), {}, run)
    gaps = tuple(in_text(gap, [path]) for gap in run.gaps)
    return Story("run", title, path, (entry,), *chosen_metrics([run]), gaps=gaps)


def reward_terms(story: Story) -> list[str]:
    """Logged keys of the terms of a reward that has several."""
    names = {term.name for run in story.runs if run.recipe is not None for term in run.recipe.reward}
    return sorted(f"reward/{name}" for name in names if len(names) > 1)


def run_state(run: Run) -> str:
    """`complete` or `stopped`: from files alone a run that goes on and one that died look the same."""
    return "complete" if run.finished else "stopped"


def run_mode(run: Run) -> GuidanceMode | None:
    """Guidance mode of a run, if its recipe is known."""
    return None if run.recipe is None else mode_of(run.recipe.guidance)


def chosen_metrics(runs: Sequence[Run]) -> tuple[str, str | None, str | None]:
    """Names of the reward metric, the diversity metric and the setting that figures show."""
    setting = common_setting(runs)
    recipe = next((run.recipe for run in runs if run.recipe is not None), None)
    names = metric_names(runs)
    diversity = next((name for name in names if name.startswith("diversity")), None)
    others = [name for name in names if name != diversity]
    wanted = recipe.best_metric if recipe else None
    reward = wanted if wanted is not None and (wanted in names or not others) else (others or ["reward"])[0]
    return reward, diversity, setting


def metric_names(runs: Sequence[Run]) -> list[str]:
    """Every metric that was evaluated, in order of appearance."""
    checkpoints = (point for run in runs for point in (run.base, *run.checkpoints))
    results = (result for point in checkpoints for result in point.evaluations.values())
    return list(dict.fromkeys(name for result in results for name in result.metrics))


def common_setting(runs: Sequence[Run]) -> str | None:
    """The evaluation setting that most runs have (ties: the one that stands first)."""
    counts = Counter(name for run in runs for name in run.settings)
    return max(counts, key=lambda name: counts[name], default=None)


def setting_of(story: Story, run: Run) -> str | None:
    """The evaluation setting that stands for a run: the story's, or the run's first where it lacks that one."""
    return story.setting if story.setting in run.settings else next(iter(run.settings), None)


def shown_settings(story: Story) -> dict[str, int]:
    """The settings that figures really show, with the number of runs; more than one must be said."""
    return dict(Counter(name for run in story.runs if (name := setting_of(story, run)) is not None))


def evaluation(point: Checkpoint, setting: str | None) -> EvaluationResult | None:
    """The evaluation of a checkpoint under a setting."""
    return point.evaluations.get(setting) if setting else None


def base_metric(story: Story, run: Run, name: str) -> Metric | None:
    """A metric of the unchanged model under the story's setting."""
    found = evaluation(run.base, setting_of(story, run))
    return found.metrics.get(name) if found else None


def points(story: Story, run: Run | None) -> list[EvaluatedPoint]:
    """The evaluated checkpoints of a run, by ascending step; none of a trial without a run."""
    if run is None:
        return []
    found, setting = [], setting_of(story, run)
    for checkpoint in run.checkpoints:
        result = evaluation(checkpoint, setting)
        reward = result.metrics.get(story.reward) if result else None
        if result is None or reward is None:
            continue
        diversity = result.metrics.get(story.diversity) if story.diversity else None
        kl = kl_at(run, checkpoint.step)
        found.append(EvaluatedPoint(checkpoint.step, reward, diversity, kl, result.metrics))
    return found


def kl_at(run: Run, step: int) -> Metric | None:
    """KL to the base around a step: mean over the last `KL_WINDOW` logged steps up to it.

    Where the run measured it on a fixed batch (`training.validate_every`), it is the last such value: it means the same
    for every method, and some log no other.
    """
    measured = run.curves.get("validation/kl")
    known = [v for at, v in zip(measured.steps, measured.values, strict=True) if at <= step] if measured else []
    if known:
        return Metric(known[-1], None)
    curve = run.curves.get("kl")
    if curve is None:
        return None
    recent = [value for at, value in zip(curve.steps, curve.values, strict=True) if at <= step][-KL_WINDOW:]
    if not recent:
        return None
    error = statistics.stdev(recent) / len(recent) ** 0.5 if len(recent) > 1 else None
    return Metric(statistics.fmean(recent), error)


def kl_names(story: Story) -> list[str]:
    """Logged KL divergences, those that most of the runs have first: all methods are measured alike on a fixed batch
    (`validation/kl`), and not every method logs its own (`kl`)."""
    counts = {name: sum(name in run.curves for run in story.runs) for name in ("validation/kl", "kl")}
    return sorted((name for name, count in counts.items() if count), key=lambda name: -counts[name])
