"""What the runs of `benchmarks/science` found, read from their run directories."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from estimates import Estimate, estimate
from experiments import EXPERIMENTS, SWEEP, folder

from amsd.run_directory import RunDirectory

REWARD = "shapes:right"
ALIGNMENT = "shapes:alignment"
PIXELS = "diversity/pixels"
CLASSIFIER = "diversity/shapes:classifier"


Scores = Mapping[str, Sequence[float]]
"""Metric -> value of each prompt."""


@dataclass(frozen=True)
class Setting:
    """One setting of an experiment: its runs and their evaluation, the same prompts and noise for all of them."""

    name: str
    runs: tuple[Path, ...]
    """Run directories, one per seed."""
    results: tuple[Scores, ...]
    """Of each run's checkpoint."""
    base: tuple[Scores, ...]
    """Of the base model, once per run."""

    def value(self, metric: str) -> Estimate:
        """The metric itself."""
        return estimate([scores[metric] for scores in self.results])

    def gain(self, metric: str) -> Estimate:
        """Paired difference to the base model."""
        return _difference(self.results, self.base, metric)

    def against(self, other: Setting, metric: str) -> Estimate:
        """Difference to another setting, paired by seed and prompt."""
        return _difference(self.results, other.results, metric)


def settings(out: Path, name: str, evaluation: str = "") -> list[Setting]:
    """Settings of an experiment with finished runs, at their last checkpoint.

    `evaluation` is a part of the name of the evaluation setting that is meant.
    """
    return [
        at_step(setting, runs, evaluation, {run: max(evaluated_steps(run)) for run in runs})
        for setting in EXPERIMENTS[name].settings
        if (runs := finished_runs(out, name, setting))
    ]


def sweep_settings(out: Path, evaluation: str) -> dict[tuple[str, float], Setting]:
    """The same of the sweep's points, by (guidance mode, eta)."""
    from amsd.sweep.results import load_sweep

    if not (out / SWEEP).is_dir():
        return {}
    found = {}
    for trial in load_sweep(out / SWEEP).complete:
        mode, eta = trial.params["mode"], float(trial.params["schedule.eta"])
        runs = [run.directory for run in trial.runs]
        steps = {run: max(evaluated_steps(run)) for run in runs}
        found[mode, eta] = at_step(f"{mode}, η = {eta:g}", runs, evaluation, steps)
    return found


def finished_runs(out: Path, name: str, setting: str) -> list[Path]:
    """Run directories of one setting, by seed."""
    return [path.parent for path in sorted(folder(out, name, setting, 0).parent.glob("seed-*/finished"))]


def at_step(name: str, runs: Sequence[Path], evaluation: str, steps: Mapping[Path, int]) -> Setting:
    """A setting at chosen checkpoints of its runs."""
    checkpoints = [run / "checkpoints" / f"step-{steps[run]:06d}" for run in runs]
    return Setting(
        name,
        tuple(runs),
        tuple(_scores(checkpoint / "evaluation", evaluation) for checkpoint in checkpoints),
        tuple(_scores(RunDirectory(run).base_evaluation, evaluation) for run in runs),
    )


def evaluated_steps(run: Path) -> list[int]:
    """Steps of the checkpoints that lie in a run directory, ascending."""
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*"))


def seconds_until(run: Path) -> dict[int, float]:
    """Seconds of training (evaluation and checkpoints left out) up to and including each optimizer step."""
    total, found = 0.0, {}
    for line in _lines(run):
        if "seconds/total" in line:
            total += line["seconds/total"]
            found[line["step"]] = total
    return found


def logged(run: Path, name: str) -> list[float]:
    """A logged value of every optimizer step."""
    return [line[name] for line in _lines(run) if name in line and "seconds/total" in line]


def _lines(run: Path) -> Iterator[dict[str, Any]]:
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        yield json.loads(line)


def _scores(results: Path, evaluation: str) -> Scores:
    (chosen,) = [file for file in sorted(results.glob("*.json")) if evaluation in file.name]
    metrics: Mapping[str, Any] = json.loads(chosen.read_text(encoding="utf-8"))["metrics"]
    return {name: metric["per_prompt"] for name, metric in metrics.items()}


def _difference(left: Sequence[Scores], right: Sequence[Scores], metric: str) -> Estimate:
    pairs = zip(left, right, strict=True)
    return estimate([[a - b for a, b in zip(x[metric], y[metric], strict=True)] for x, y in pairs])
