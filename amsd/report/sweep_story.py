"""The story of a sweep: its trials with their runs, and what was searched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from amsd.places import in_text
from amsd.recipe.guidance_modes import mode_named
from amsd.report.data import Run, is_run, named_together, read_run
from amsd.report.numbers import counted
from amsd.report.story import Axis, Goal, ShownRun, Story, chosen_metrics, run_mode, shown_settings
from amsd.tracking.progress import Report, silent

if TYPE_CHECKING:
    from amsd.sweep.results import SeedRun, SweepResults, TrialResult
    from amsd.sweep.schema import Constraint
    from amsd.sweep.search import Dimension


def sweep_story(source: Path | str, report: Report = silent) -> Story:
    """The story of the sweep in a directory or behind a storage URL.

    Raises:
        UsageError: there is no sweep.
    """
    from amsd.sweep.results import load_sweep

    return story_of(load_sweep(source), report)


def story_of(results: SweepResults, report: Report = silent) -> Story:
    """The story of a sweep that was read already."""
    gaps: list[str] = []
    found: list[ShownRun] = []
    for number, trial in enumerate(results.trials, 1):
        found += _entries(trial, gaps)
        report("reading trials", number, len(results.trials))
    entries = _named_together(found)
    entries = [replace(entry, folder=_folder(entry, results.directory)) for entry in entries]
    runs = [entry.run for entry in entries if entry.run is not None]
    reward, diversity, setting = chosen_metrics(runs)
    story = Story(
        kind="sweep",
        title=results.name,
        path=results.directory,
        entries=tuple(entries),
        reward=reward if runs else results.objectives[0].metric,
        diversity=diversity,
        setting=setting,
        axes=tuple(_axis(key, space, results.trials) for key, space in results.sweep.search.items()),
        objectives=tuple(Goal(o.label, o.direction == "maximize") for o in results.objectives),
        importance=results.importance,
        constraints=tuple(_bound(constraint) for constraint in results.sweep.constraint),
        description=results.sweep.description,
    )
    told = (*_sweep_gaps(results, runs), *_unequal(story), *gaps)
    return replace(story, gaps=tuple(in_text(gap, [results.directory]) for gap in told))


def _named_together(entries: Sequence[ShownRun]) -> list[ShownRun]:
    """Entries whose runs name their evaluation series alike where the conditions are alike."""
    runs = iter(named_together([entry.run for entry in entries if entry.run is not None]))
    return [entry if entry.run is None else replace(entry, run=next(runs)) for entry in entries]


def _unequal(story: Story) -> list[str]:
    """What to say where runs were not evaluated alike."""
    settings = shown_settings(story)
    if len(settings) < 2:
        return []
    words = ", ".join(f"{name} ({count} runs)" for name, count in settings.items())
    return [
        f"Runs were evaluated under different settings, so compare them with care: {words}. "
        "Setting evaluation.guidance_scale and evaluation.num_inference_steps in the sweep makes them equal."
    ]


def _entries(trial: TrialResult, gaps: list[str]) -> list[ShownRun]:
    """One entry for each training seed, or one without a run where a trial has not begun."""
    now = datetime.now() if trial.state == "running" else None
    whole = ShownRun(
        key=f"t{trial.number}",
        label=f"trial {trial.number}",
        state=trial.state,
        mode=mode_named(trial.cfg_mode),
        params=trial.params,
        run=None,
        objective=trial.values[0] if trial.values else None,
        started=None if trial.started is None else trial.started.timestamp(),
        ended=None if (end := trial.ended or now) is None else end.timestamp(),
        duration=trial.duration,
        error=trial.error,
        trial=trial.number,
        copy_of=trial.copy_of,
        feasible=trial.feasible,
    )
    several = len(trial.runs) > 1
    return [_of_seed(whole, seed, trial, several, gaps) for seed in trial.runs] or [whole]


def _of_seed(whole: ShownRun, seed: SeedRun, trial: TrialResult, several: bool, gaps: list[str]) -> ShownRun:
    run = _run(seed.directory, trial, gaps)
    return replace(
        whole,
        key=f"{whole.key}s{seed.seed}",
        label=whole.label + (f", seed {seed.seed}" if several else ""),
        mode=whole.mode or (run_mode(run) if run else None),
        run=run,
        values=tuple(seed.values.values()),
        seed=seed.seed,
    )


def _run(directory: Path, trial: TrialResult, gaps: list[str]) -> Run | None:
    if trial.copy_of is not None:
        return None  # the same run as another trial's: it is drawn once
    if is_run(directory):
        return read_run(directory)
    if trial.state not in ("queued", "running"):
        place = "/".join(directory.parts[-4:])
        gaps.append(f"Trial {trial.number}: its run directory {place} is not on this machine.")
    return None


def _folder(entry: ShownRun, sweep: Path) -> str:
    if entry.run is None:
        return ""
    place, home = entry.run.path.resolve(), sweep.resolve()
    return quote(f"{place.relative_to(home).as_posix()}/") if place.is_relative_to(home) else place.as_uri()


def _axis(key: str, space: Dimension, trials: Sequence[TrialResult]) -> Axis:
    taken = {trial.params[key] for trial in trials if key in trial.params}
    values = tuple(sorted(taken, key=_order))
    return Axis(key, values, _describe(space), log=space.log, choices=space.choices is not None)


def _order(value: Any) -> tuple[bool, float, str]:
    number = isinstance(value, (int, float))
    return (not number, float(value) if number else 0.0, str(value))


def _describe(space: Dimension) -> str:
    if space.choices is not None:
        text = "one of " + ", ".join(str(choice).lower() if isinstance(choice, bool) else str(choice)
                                     for choice in space.choices)  # fmt: skip
    elif space.variants is not None:
        text = "variants " + ", ".join(space.variants)
    else:
        text = f"{space.low:g} to {space.high:g}" + (", logarithmic" if space.log else "")
        text += f", in steps of {space.step:g}" if space.step else ""
    return text + "".join(f"; only where {key} allows it" for key in space.when)


def _bound(constraint: Constraint) -> str:
    if constraint.at_most is not None:
        return f"{constraint.metric} at most {constraint.at_most:g}"
    return f"{constraint.metric} at least {constraint.at_least:g}"


def _sweep_gaps(results: SweepResults, runs: Sequence[Run]) -> list[str]:
    said = []
    if results.stopped:
        said.append(f"The sweep stopped early: {results.stopped}")
    open_trials = sum(trial.state in ("queued", "running") for trial in results.trials)
    if open_trials:
        said.append(f"The sweep is not over: {counted(open_trials, 'trial')} queued or running.")
    if not results.trials:
        said.append("No trial has begun yet.")
    without_base = sum(not run.base.evaluations for run in runs)
    if without_base:
        said.append(f"{counted(without_base, 'run')} without an evaluation of the base model.")
    failed = [trial.number for trial in results.trials if trial.state == "failed"]
    if failed:
        said.append(f"Failed: trial{'s' * (len(failed) > 1)} {', '.join(map(str, failed))} (errors in the table).")
    return said
