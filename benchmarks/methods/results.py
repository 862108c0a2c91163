"""What the runs found, read from their result files."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from estimates import Estimate, estimate
from parts import FACTORS, METHODS, REWARD, Contender

TILT = 50.0
"""The reward multiplier of both recipes."""


@dataclass(frozen=True)
class RunPoint:
    """One run at one of its checkpoints."""

    step: int
    forwards: float
    """Network forward-equivalents of the training so far."""
    seconds: float
    """Of training, without evaluation, validation and checkpoints, beside whatever else the machine did."""
    kl: float
    """KL divergence of the path law from the base's, on the fixed validation batch."""
    changes: Mapping[str, Sequence[float]]
    """Metric -> paired difference to the base model, for each prompt."""

    @property
    def distances(self) -> list[float]:
        """How much farther from the tilt the policy is than the base, in nats, by prompt; negative is nearer.

        KL(policy || tilt) - KL(base || tilt) = KL(policy || base) - lambda (gain in reward), for path laws and a
        memoryless sampler: the normalization of the tilt, which nobody knows, cancels.
        """
        return [self.kl - TILT * gain for gain in self.changes[REWARD]]

    @property
    def efficiencies(self) -> list[float]:
        """Gain in reward over the root of the KL divergence, by prompt.

        A weak tilt gains lambda Var(r) at a divergence of lambda^2 Var(r)/2, so that this is the same for every lambda,
        and no other law gains more at the same divergence.
        """
        return [gain / math.sqrt(max(self.kl, 1e-12)) for gain in self.changes[REWARD]]


@dataclass(frozen=True)
class FinishedRun:
    """One finished run."""

    seed: int
    points: tuple[RunPoint, ...]

    def change(self, metric: str) -> float:
        """At the end."""
        return mean(self.points[-1].changes[metric])

    def forwards_to(self, gain: float) -> float | None:
        """Network forward-equivalents until the gain in reward is reached; linear between checkpoints."""
        before = (0.0, 0.0)
        for point in self.points:
            here = (mean(point.changes[REWARD]), point.forwards)
            if before[0] <= gain <= here[0]:
                return before[1] + (gain - before[0]) / max(here[0] - before[0], 1e-12) * (here[1] - before[1])
            before = here
        return None


def runs_of(out: Path, model: str, name: str, factor: float) -> list[FinishedRun]:
    """Finished runs of a method at one learning rate, by seed."""
    files = [(seed, Contender(model, name, factor, seed).result(out)) for seed in range(100)]
    return [_read(file, seed) for seed, file in files if file.is_file()]


def swept_factors(out: Path, model: str) -> list[float]:
    """Learning rates that every method has run at, as factors of the recipe's, in the order of the sweep."""
    return [factor for factor in FACTORS if all(runs_of(out, model, name, factor) for name in METHODS)]


def chosen_factor(out: Path, model: str, name: str, factors: Sequence[float]) -> float:
    """The rate, of those with a run, whose run on seed 0 ends nearest to the tilt; the first where none has run."""
    swept = {factor: runs[0] for factor in factors if (runs := runs_of(out, model, name, factor))}
    return min(swept, key=lambda factor: mean(swept[factor].points[-1].distances), default=FACTORS[0])


def chosen(out: Path, model: str) -> dict[str, tuple[float, list[FinishedRun]]]:
    """Each method's factor of the learning rate, of those that all have run at, and its runs; none without any."""
    swept = swept_factors(out, model)
    factors = {name: chosen_factor(out, model, name, swept) for name in METHODS}
    return {name: (each, runs) for name, each in factors.items() if (runs := runs_of(out, model, name, each))}


def add(out: Path, other: Path) -> int:
    """Copy the results of another folder of the same length that are missing here; how many they are."""
    missing = [file for file in sorted(other.rglob("seed-*.json")) if not (out / file.relative_to(other)).exists()]
    for file in missing:
        target = out / file.relative_to(other)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    return len(missing)


def change(runs: Sequence[FinishedRun], metric: str, step: int = -1) -> Estimate:
    """Paired difference to the base model at one of the checkpoints."""
    return estimate([run.points[step].changes[metric] for run in runs])


def distance(runs: Sequence[FinishedRun], step: int = -1) -> Estimate:
    """Change of the distance to the tilt against the base's, in nats."""
    return estimate([run.points[step].distances for run in runs])


def efficiency(runs: Sequence[FinishedRun], step: int = -1) -> Estimate:
    """Gain over the root of the KL divergence."""
    return estimate([run.points[step].efficiencies for run in runs])


def gains(point: RunPoint) -> Sequence[float]:
    """In reward, by prompt."""
    return point.changes[REWARD]


def against(
    runs: Sequence[FinishedRun],
    others: Sequence[FinishedRun],
    values: Callable[[RunPoint], Sequence[float]] = gains,
    step: int = -1,
) -> Estimate:
    """Difference of two methods at one of their checkpoints, paired by seed and prompt; seeds that both have."""
    known = {run.seed: run for run in others}
    pairs = [(values(run.points[step]), values(known[run.seed].points[step])) for run in runs if run.seed in known]
    return estimate([[a - b for a, b in zip(x, y, strict=True)] for x, y in pairs])


@dataclass(frozen=True)
class Timing:
    """What network calls take: processor time on one thread."""

    machine: str
    seconds_per_call: float


def timings(out: Path, model: str) -> dict[str, Timing]:
    """Of the methods that were measured."""
    files = {name: Contender(model, name, FACTORS[0], 0).timing(out) for name in METHODS}
    return {
        name: Timing(**json.loads(each.read_text(encoding="utf-8"))) for name, each in files.items() if each.is_file()
    }


def _read(file: Path, seed: int) -> FinishedRun:
    found = json.loads(file.read_text(encoding="utf-8"))
    return FinishedRun(seed, tuple(RunPoint(**point) for point in found["points"]))
