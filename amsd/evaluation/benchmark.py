"""The reference's evaluation protocol, and results as one table beside its published numbers.

Published: microsoft/soc-fine-tuning-sd, Stable Diffusion 1.5 trained on ImageReward; 100 prompts x 10 samples, 50
steps, guidance 7.5, sampled with the fine-tuning scheduler. Their standard errors are not published, so a difference is
counted in standard errors of the new number alone.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from amsd.evaluation.result import EvaluationResult
from amsd.evaluation.statistics import measured
from amsd.files import write_json, write_text
from amsd.recipe import Recipe

PROTOCOL = (
    "evaluation.prompts=100",
    "evaluation.samples_per_prompt=10",
    "evaluation.eta=[0.0, 1.0]",
    'evaluation.scheduler=["fine-tuning", "default"]',
    'evaluation.metrics=["imagereward", "clip-score", "hps-v2.1"]',
    'evaluation.diversity=["dreamsim"]',
)
"""Assignments that turn a recipe's evaluation into the published one; later assignments win."""

_METRICS = ("imagereward", "clip-score", "hps-v2.1", "diversity/dreamsim")
_BASE = 0.0
PUBLISHED: Mapping[tuple[float, float], tuple[float, float, float, float]] = {
    (_BASE, 0): (0.187, 0.2746, 0.2566, 0.3849),
    (_BASE, 1): (0.280, 0.2766, 0.2560, 0.3471),
    (10, 0): (0.342, 0.2764, 0.2623, 0.3774),
    (31.6, 0): (0.555, 0.2780, 0.2700, 0.3632),
    (100, 0): (0.787, 0.2792, 0.2791, 0.3363),
    (100, 1): (0.820, 0.2800, 0.2782, 0.3049),
}
"""(reward multiplier, eta) -> ImageReward, CLIP score, HPS v2.1, DreamSim variance; multiplier 0 is the base model."""


@dataclass(frozen=True)
class BenchmarkRow:
    """One metric of one set of weights under one setting."""

    model: str
    """`base`, or the checkpoint with its reward multiplier."""
    setting: str
    metric: str
    mean: float
    standard_error: float | None
    published: float | None
    """None where nothing was published for this model and setting."""
    difference: float | None
    """mean - published."""
    standard_errors: float | None
    """That difference in standard errors of the mean."""


@dataclass(frozen=True)
class Benchmark:
    """The table and what it was made with."""

    rows: tuple[BenchmarkRow, ...]
    conditions: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        base: Sequence[EvaluationResult],
        tuned: Sequence[EvaluationResult] = (),
        name: str = "",
        trained: bool = True,
    ) -> Benchmark:
        """Rows of the base model and, where given, of a model called `name`, `trained` by this recipe or anybody's."""
        multiplier = recipe.method.tilt if trained else None
        rows = [row for result in base for row in _rows("base", _BASE, recipe, result)]
        label = name if multiplier is None else f"{name} (λ = {multiplier:g})"
        rows += [row for result in tuned for row in _rows(label, multiplier, recipe, result)]
        conditions = {result.name: {**result.settings, "identity": result.identity} for result in [*base, *tuned]}
        return cls(tuple(rows), {"prompts": len(base[0].prompts), "settings": conditions})

    def save(self, folder: Path) -> list[Path]:
        """Write `benchmark.json`, `benchmark.csv` and `benchmark.md`, each atomically."""
        files = [folder / f"benchmark.{kind}" for kind in ("json", "csv", "md")]
        write_json(files[0], {"rows": [asdict(row) for row in self.rows], **self.conditions})
        write_text(files[1], self.csv())
        write_text(files[2], self.markdown())
        return files

    def columns(self) -> list[str]:
        """Names of a row's values."""
        return [field.name for field in fields(BenchmarkRow)]

    def values(self) -> list[list[Any]]:
        """Rows as plain lists, in the order of `columns`."""
        return [list(asdict(row).values()) for row in self.rows]

    def csv(self) -> str:
        """One line per row; what is unknown is empty."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(self.columns())
        writer.writerows(["" if value is None else value for value in row] for row in self.values())
        return stream.getvalue()

    def markdown(self) -> str:
        """One line per model and setting, one column per metric: mean ± s.e., published number and difference."""
        metrics = list(dict.fromkeys(row.metric for row in self.rows))
        lines = ["| model | setting | " + " | ".join(metrics) + " |", "|---" * (2 + len(metrics)) + "|"]
        cells = {(row.model, row.setting, row.metric): _cell(row) for row in self.rows}
        for model, setting in dict.fromkeys((row.model, row.setting) for row in self.rows):
            found = [cells.get((model, setting, metric), "") for metric in metrics]
            lines.append(f"| {model} | {setting} | " + " | ".join(found) + " |")
        note = f"Mean ± standard error over {self.conditions['prompts']} prompts."
        if any(row.published is not None for row in self.rows):
            note += " In brackets: the number published by the reference, and the difference in standard errors."
        return "\n".join([*lines, "", note, ""])


def published(recipe: Recipe, multiplier: float | None, result: EvaluationResult, metric: str) -> float | None:
    """The number of the published table that this result repeats; None unless model, reward and setting are its own."""
    settings = result.settings
    same = (
        "stable-diffusion-v1-5" in recipe.model.pretrained
        and (multiplier == _BASE or [term.name for term in recipe.reward] == ["imagereward"])
        and settings["scheduler"] == "fine-tuning"
        and settings["guidance_scale"] == 7.5
        and settings["num_inference_steps"] == 50
    )
    numbers = PUBLISHED.get((multiplier, settings["eta"])) if same and multiplier is not None else None
    return None if numbers is None or metric not in _METRICS else numbers[_METRICS.index(metric)]


def _rows(model: str, multiplier: float | None, recipe: Recipe, result: EvaluationResult) -> list[BenchmarkRow]:
    rows = []
    for name, metric in result.metrics.items():
        known = published(recipe, multiplier, result, name)
        difference = None if known is None else metric.mean - known
        error = metric.standard_error
        errors = None if difference is None or not error else difference / error
        rows.append(BenchmarkRow(model, result.name, name, metric.mean, error, known, difference, errors))
    return rows


def _cell(row: BenchmarkRow) -> str:
    text = measured(row.mean, row.standard_error)
    if row.published is None:
        return text
    return f"{text} ({row.published:.4f}{'' if row.standard_errors is None else f', {row.standard_errors:+.1f}'})"
