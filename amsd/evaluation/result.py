"""What an evaluation says, as values that travel and as the JSON file that other tools read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amsd.errors import UsageError
from amsd.files import write_json

if TYPE_CHECKING:
    from torch import Tensor

DIVERSITY = "diversity/"
"""Prefix of diversity metrics: `diversity/dreamsim`."""
KID = "kid/"
"""Prefix of kernel distances to the base model's images: `kid/clip`."""
FID = "fid/"
"""Prefix of Frechet distances to the base model's images: `fid/clip`."""


@dataclass(frozen=True)
class Paired:
    """Difference to the base model on the same prompts and noise."""

    difference: float
    """Mean over prompts of (this - base)."""
    standard_error: float | None
    """Of that mean; None for a single prompt."""
    p_value: float | None
    """Two-sided paired t-test; None for a single prompt."""


@dataclass(frozen=True)
class MetricResult:
    """One metric under one setting."""

    version: str
    """Version of the scorer that made it."""
    mean: float
    """Mean over prompts of the per-prompt means."""
    standard_error: float | None
    """s.d. over prompts (ddof 1) / sqrt(P); None for a single prompt."""
    per_prompt: tuple[float, ...]
    """In the order of the prompts: mean over a prompt's samples; for diversity their variance; for a distance to the
    base model the jackknife's pseudo-value."""
    paired: Paired | None = None
    """Comparison with the base model; None for the base model itself and for distances to it."""


@dataclass(frozen=True)
class EvaluationResult:
    """All metrics of one set of weights under one sampler setting."""

    name: str
    """Name of the setting and stem of the file."""
    settings: Mapping[str, Any]
    """Everything that determines the images besides the prompts: sampler, seed, samples, precision, weights."""
    identity: str
    """sha256 of the settings, prompts and metric versions."""
    prompts: tuple[str, ...]
    metrics: Mapping[str, MetricResult]
    """By name: rewards, then `diversity/<embedder>`; then, against a base model, `kid/` and `fid/<embedder>`."""
    pictures: Tensor | None = field(default=None, compare=False, repr=False)
    """Samples of the first prompts (prompts, samples, 3, H, W), uint8; main process only, not in the file."""
    embeddings: Mapping[str, Tensor] = field(default_factory=dict, compare=False, repr=False)
    """Of the base model: (P, S, D), float32, by embedder, that distances are measured to; not in the file."""

    def to_json(self) -> dict[str, Any]:
        """The content of the file."""
        return {
            "settings": dict(self.settings),
            "identity": self.identity,
            "prompts": list(self.prompts),
            "metrics": {name: _metric_json(metric) for name, metric in self.metrics.items()},
        }

    def save(self, folder: Path) -> Path:
        """Write `folder/<name>.json` atomically and return its path."""
        file = folder / f"{self.name}.json"
        write_json(file, self.to_json())
        return file

    @classmethod
    def load(cls, file: Path) -> EvaluationResult:
        """Read what `save` wrote (without pictures).

        Raises:
            UsageError: the file is absent or not an evaluation.
        """
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            metrics = {name: _metric_from(entry) for name, entry in data["metrics"].items()}
            return cls(file.stem, data["settings"], data["identity"], tuple(data["prompts"]), metrics)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{file}: is not an evaluation file: {error!r}") from error


def is_distance(name: str) -> bool:
    """Whether a metric is a distance to the base model's images: lower is closer, and the base itself has none."""
    return name.startswith((KID, FID))


def comparable(one: EvaluationResult, other: EvaluationResult) -> bool:
    """Whether two results differ in their weights only: same prompts, noise, sampler, precision and libraries."""
    return one.prompts == other.prompts and conditions(one.settings) == conditions(other.settings)


def conditions(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What of a result's settings two results must share to be compared: everything but the weights."""
    return {key: value for key, value in settings.items() if key != "weights"}


def _metric_json(metric: MetricResult) -> dict[str, Any]:
    paired = metric.paired
    return {
        "mean": metric.mean,
        "standard_error": metric.standard_error,
        "per_prompt": list(metric.per_prompt),
        "paired": paired
        and {"difference": paired.difference, "standard_error": paired.standard_error, "p_value": paired.p_value},
        "version": metric.version,
    }


def _metric_from(data: Mapping[str, Any]) -> MetricResult:
    paired = data["paired"] and Paired(**data["paired"])
    return MetricResult(data["version"], data["mean"], data["standard_error"], tuple(data["per_prompt"]), paired)
