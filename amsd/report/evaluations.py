"""Results of an evaluation, from its JSON file or, where that is missing, from metrics.jsonl."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_PREFIX = "eval/"
#: What may follow a metric's name in a key of a metrics line.
_PARTS = ("standard_error", "difference", "difference_standard_error", "p_value")


@dataclass(frozen=True)
class Paired:
    """Difference to the base model over the same prompts and noise (docs/method.md section 6)."""

    difference: float
    standard_error: float | None
    p_value: float | None


@dataclass(frozen=True)
class Metric:
    """One metric of one checkpoint: mean over prompts with its standard error."""

    mean: float
    standard_error: float | None
    paired: Paired | None = None
    per_prompt: tuple[float, ...] = ()
    """In the order of the prompts; empty where only metrics.jsonl is left."""


@dataclass(frozen=True)
class Evaluation:
    """All metrics of one checkpoint under one evaluation setting."""

    setting: str
    metrics: Mapping[str, Metric]
    prompts: tuple[str, ...] = ()
    """Empty where only metrics.jsonl is left."""
    settings: Mapping[str, Any] = field(default_factory=dict)


def read_evaluation(file: Path) -> Evaluation:
    """Read `evaluation/<setting>.json`.

    Raises:
        OSError, ValueError, KeyError, TypeError: the file is not what the evaluation writes.
    """
    data = json.loads(file.read_text(encoding="utf-8"))
    metrics = {}
    for name, entry in data["metrics"].items():
        mean = finite(entry["mean"])
        if mean is not None:
            each = tuple(float(value) for value in entry.get("per_prompt", ()))
            metrics[str(name)] = Metric(mean, finite(entry.get("standard_error")), _paired(entry.get("paired")), each)
    prompts = tuple(str(prompt) for prompt in data.get("prompts", ()))
    return Evaluation(file.stem, metrics, prompts, data.get("settings", {}))


def read_evaluation_line(entry: Mapping[str, Any]) -> Evaluation:
    """Read the evaluation line of metrics.jsonl: flat keys `eval/<metric>` and `eval/<metric>/<part>`."""
    found: dict[str, dict[str, float | None]] = {}
    for key, value in entry.items():
        if not key.startswith(_PREFIX):
            continue
        name = key.removeprefix(_PREFIX)
        head, _, tail = name.rpartition("/")
        metric, part = (head, tail) if tail in _PARTS else (name, "mean")
        found.setdefault(metric, {})[part] = finite(value)
    metrics = {name: _metric(parts) for name, parts in found.items()}
    return Evaluation(
        str(entry["evaluation"]), {name: metric for name, metric in metrics.items() if metric is not None}
    )


def finite(value: Any) -> float | None:
    """A finite number, or None for anything else."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def _metric(parts: Mapping[str, float | None]) -> Metric | None:
    mean, difference = parts.get("mean"), parts.get("difference")
    if mean is None:
        return None
    error, p_value = parts.get("difference_standard_error"), parts.get("p_value")
    return Metric(mean, parts.get("standard_error"), None if difference is None else Paired(difference, error, p_value))


def _paired(entry: Any) -> Paired | None:
    if not isinstance(entry, Mapping):
        return None
    difference = finite(entry.get("difference"))
    if difference is None:
        return None
    return Paired(difference, finite(entry.get("standard_error")), finite(entry.get("p_value")))
