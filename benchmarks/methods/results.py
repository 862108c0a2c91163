"""What the runs found, read from their run directories."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from runs import METHODS, RATES, folder, is_finished

from amsd.recipe.cost import forwards_per_step
from amsd.recipe.load import load_recipe
from amsd.run_directory import RunDirectory

REWARD = "shapes:right"
ALIGNMENT = "shapes:alignment"
DIVERSITY = "diversity/pixels"
METRICS = (REWARD, ALIGNMENT, DIVERSITY)
KEPT = 0.05
"""Fall of the caption alignment, in the metric's units, beyond which a learning rate is not chosen."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error: over seeds and prompts, or over prompts alone for one seed."""

    value: float
    error: float

    def shown(self, sign: str = "+") -> str:
        """`value ± error`, to three decimals."""
        return f"{self.value:{sign}.3f} ± {self.error:.3f}"


@dataclass(frozen=True)
class Point:
    """One run at one of its checkpoints."""

    forwards: float
    """Network forward-equivalents of the training so far."""
    seconds: float
    """Of training, without evaluation, validation and checkpoints."""
    kl: float
    """KL divergence of the path law from the base's, on the fixed validation batch."""
    changes: Mapping[str, Sequence[float]]
    """Metric -> paired difference to the base model, for each prompt."""


@dataclass(frozen=True)
class Run:
    """One finished run."""

    seed: int
    points: tuple[Point, ...]

    def change(self, metric: str) -> float:
        """At the end."""
        return mean(self.points[-1].changes[metric])

    def gain_at(self, kl: float) -> float | None:
        """Gain in reward where the KL divergence reaches `kl`.

        Between checkpoints (the base is one) it is linear in the root of the KL divergence, as for small shifts.
        """
        before = (0.0, 0.0)
        for point in self.points:
            here = (math.sqrt(point.kl), mean(point.changes[REWARD]))
            if before[0] <= math.sqrt(kl) <= here[0]:
                share = (math.sqrt(kl) - before[0]) / max(here[0] - before[0], 1e-12)
                return before[1] + share * (here[1] - before[1])
            before = here
        return None


def runs_of(out: Path, name: str, rate: float) -> list[Run]:
    """Finished runs of a method at one learning rate, by seed."""
    seeds = range(100)
    return [_read(folder(out, name, rate, seed), seed) for seed in seeds if is_finished(folder(out, name, rate, seed))]


def swept_rates(out: Path) -> list[float]:
    """Rates that every method has run at, in the order of the sweep."""
    return [rate for rate in RATES if all(runs_of(out, name, rate) for name in METHODS)]


def chosen_rate(out: Path, name: str) -> float:
    """The swept rate whose run on seed 0 ends with the highest reward and has kept to the captions.

    Where no rate was swept it is the recipe's own, the first.
    """
    found = {rate: runs_of(out, name, rate)[0] for rate in swept_rates(out)}
    kept = {rate: run for rate, run in found.items() if run.change(ALIGNMENT) > -KEPT}
    return max(kept or found, key=lambda rate: found[rate].change(REWARD), default=RATES[0])


def chosen(out: Path) -> dict[str, tuple[float, list[Run]]]:
    """Each method's learning rate and its runs; methods without a finished run are left out."""
    rates = {name: chosen_rate(out, name) for name in METHODS}
    return {name: (rate, runs) for name, rate in rates.items() if (runs := runs_of(out, name, rate))}


def change(runs: Sequence[Run], metric: str, step: int = -1) -> Estimate:
    """Paired difference to the base model at one of the checkpoints."""
    return estimate([run.points[step].changes[metric] for run in runs])


def against(runs: Sequence[Run], others: Sequence[Run], metric: str) -> Estimate:
    """Difference of two methods at their ends, paired by seed and prompt; seeds that both have."""
    known = {run.seed: run for run in others}
    pairs = [(run.points[-1], known[run.seed].points[-1]) for run in runs if run.seed in known]
    return estimate([[a - b for a, b in zip(x.changes[metric], y.changes[metric], strict=True)] for x, y in pairs])


def estimate(values: Sequence[Sequence[float]]) -> Estimate:
    """Mean and standard error of values by seed and prompt (all seeds share the prompts)."""
    by_seed = [mean(of_seed) for of_seed in values]
    by_prompt = [mean(of_prompt) for of_prompt in zip(*values, strict=True)]
    between = stdev(by_seed) / math.sqrt(len(by_seed)) if len(by_seed) > 1 else 0.0
    return Estimate(mean(by_seed), math.hypot(between, stdev(by_prompt) / math.sqrt(len(by_prompt))))


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean and standard error of one number of each seed."""
    return Estimate(mean(values), stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0)


def _read(run: Path, seed: int) -> Run:
    each = forwards_per_step(load_recipe(run / "recipe.toml"))
    base = _scores(next(RunDirectory(run).base_evaluation.glob("*.json")))
    points, seconds = [], 0.0
    for line in map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()):
        seconds += line.get("seconds/total", 0.0)
        folder = run / "checkpoints" / f"step-{line.get('step', 0):06d}" / "evaluation"
        if "validation/kl" in line and folder.is_dir():
            found = _scores(next(folder.glob("*.json")))
            changes = {name: [a - b for a, b in zip(found[name], base[name], strict=True)] for name in METRICS}
            points.append(Point(each * line["step"], seconds, line["validation/kl"], changes))
    return Run(seed, tuple(points))


def _scores(file: Path) -> dict[str, list[float]]:
    metrics: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))["metrics"]
    return {name: metric["per_prompt"] for name, metric in metrics.items()}
