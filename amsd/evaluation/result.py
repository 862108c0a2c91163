"""What an evaluation says, as values that travel and as the JSON file that other tools read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from amsd.errors import UsageError
from amsd.evaluation.identity import identity
from amsd.files import write_json
from amsd.reading import parsed_object

if TYPE_CHECKING:
    from torch import Tensor

#: What names of settings and keys of results look like.
_STEM, _KEY = re.compile(r"[\w][\w.+-]{0,150}"), re.compile(r"[0-9a-f]{0,64}")
FORMAT = 2
"""Version of the file. 1 (no key `format`): named by the sampler setting alone."""
DIVERSITY = "diversity/"
"""Prefix of diversity metrics: `diversity/dreamsim`."""
KID = "kid/"
"""Prefix of kernel distances to the base model's images: `kid/clip`."""
FID = "fid/"
"""Prefix of Frechet distances to the base model's images: `fid/clip`."""


@dataclass(frozen=True)
class Paired:
    """Difference to the base model on the same prompts and noise (docs/method.md section 6)."""

    difference: float
    """Mean over prompts of (this - base)."""
    standard_error: float | None
    """Of that mean; None for a single prompt."""
    p_value: float | None
    """Two-sided paired t-test; None for a single prompt."""


@dataclass(frozen=True)
class Metric:
    """One metric under one setting."""

    mean: float
    """Mean over prompts of the per-prompt means."""
    standard_error: float | None
    """s.d. over prompts (ddof 1) / sqrt(P); None for a single prompt."""
    paired: Paired | None = None
    """Comparison with the base model; None for the base model itself and for distances to it."""
    per_prompt: tuple[float, ...] = ()
    """In the order of the prompts: mean over a prompt's samples; for diversity their variance; for a distance to the
    base model the jackknife's pseudo-value. Empty where only metrics.jsonl is left."""
    version: str = ""
    """Version of the scorer that made it."""


@dataclass(frozen=True)
class EvaluationResult:
    """All metrics of one set of weights under one sampler setting."""

    name: str
    """Name of the setting."""
    settings: Mapping[str, Any]
    """Everything that determines the images besides the prompts: sampler, seed, samples, precision, weights."""
    identity: str
    """sha256 of the settings, prompts and metric versions."""
    prompts: tuple[str, ...]
    metrics: Mapping[str, Metric]
    """By name: rewards, then `diversity/<embedder>`; then, against a base model, `kid/` and `fid/<embedder>`."""
    key: str = ""
    """Eight hexadecimal digits: equal for two results exactly if they differ in their weights only (`result_key`).
    Empty in files of format 1."""
    base: str = ""
    """Weights of the base model: its own for the base itself. Empty in files of format 1."""
    pictures: Tensor | None = field(default=None, compare=False, repr=False)
    """Samples of the first prompts (prompts, samples, 3, H, W), uint8; main process only, not in the file."""
    embeddings: Mapping[str, Tensor] = field(default_factory=dict, compare=False, repr=False)
    """Of the base model: (P, S, D), float32, by embedder, that distances are measured to; not in the file."""

    @property
    def stem(self) -> str:
        """Name of its file and of its folder of pictures: setting, prompts x samples, key."""
        samples = self.settings.get("samples_per_prompt", "")
        return f"{self.name}-{len(self.prompts)}x{samples}-{self.key}" if self.key else self.name

    def to_json(self) -> dict[str, Any]:
        """The content of the file."""
        return {
            "format": FORMAT,
            "setting": self.name,
            "key": self.key,
            "base": self.base,
            "settings": dict(self.settings),
            "identity": self.identity,
            "prompts": list(self.prompts),
            "metrics": {name: _metric_json(metric) for name, metric in self.metrics.items()},
        }

    def save(self, folder: Path) -> Path:
        """Write `folder/<stem>.json` atomically and return its path.

        Two different results of the same weights have different stems, so none overwrites another.
        """
        file = folder / f"{self.stem}.json"
        write_json(file, self.to_json())
        return file

    @classmethod
    def load(cls, file: Path) -> Self:
        """Read what `save` wrote (without pictures), in this format or an earlier one.

        Raises:
            UsageError: the file is absent, not an evaluation, or of a newer format.
        """
        try:
            data = parsed_object(file.read_text(encoding="utf-8"))
            written = data.get("format", 1)
            if written > FORMAT:
                raise UsageError(f"{file}: its format {written} is newer than this amsd reads ({FORMAT}); update amsd")
            metrics = {name: _metric_from(entry) for name, entry in _table(data, "metrics").items()}
            settings = _table(data, "settings") if "settings" in data else {}
            prompts = tuple(map(_text, _list(data, "prompts")))
            name, key, base, identity = (_text(data.get(part, "")) for part in ("setting", "key", "base", "identity"))
            if not _STEM.fullmatch(name or file.stem) or not _KEY.fullmatch(key):  # they name files and folders
                raise ValueError(f"setting {name!r} and key {key!r} cannot name a file")
            return cls(name or file.stem, settings, identity, prompts, metrics, key, base)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise UsageError(f"{file}: is not an evaluation file: {error!r}") from error


def result_key(settings: Mapping[str, Any], prompts: tuple[str, ...], scorers: Mapping[str, str], base: str) -> str:
    """The key of a result: of everything that determines it but the weights it is about.

    `scorers` gives the version of every scorer and embedder by metric, `base` the weights that it is compared with.
    """
    ingredients = {"conditions": conditions(settings), "prompts": prompts, "scorers": dict(scorers), "base": base}
    return identity(ingredients)[:8]


def base_weights(result: EvaluationResult) -> str:
    """Weights of the base model that a result is compared with; in format 1 they stand before the plus sign."""
    return result.base or str(result.settings.get("weights", "")).partition("+")[0]


def is_distance(name: str) -> bool:
    """Whether a metric is a distance to the base model's images: lower is closer, and the base itself has none."""
    return name.startswith((KID, FID))


def pairable(base: EvaluationResult, settings: Mapping[str, Any], prompts: tuple[str, ...]) -> bool:
    """Whether images made under `settings` start from the base's noise and show the same prompts.

    The two may be different pipelines with schedulers of their own, so details of the sampler may differ.
    """
    one, other = ({k: v for k, v in conditions(each).items() if k != "sampler"} for each in (base.settings, settings))
    return base.prompts == prompts and one == other


def conditions(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What of a result's settings two results must share to be compared: everything but the weights."""
    return {key: value for key, value in settings.items() if key != "weights"}


def saved_results(folder: Path) -> list[EvaluationResult]:
    """Every evaluation in a folder, by name of its file.

    Raises:
        UsageError: one of them cannot be read.
    """
    return [EvaluationResult.load(file) for file in sorted(folder.glob("*.json"))]


def _metric_json(metric: Metric) -> dict[str, Any]:
    paired = metric.paired
    return {
        "mean": metric.mean,
        "standard_error": metric.standard_error,
        "per_prompt": list(metric.per_prompt),
        "paired": paired
        and {"difference": paired.difference, "standard_error": paired.standard_error, "p_value": paired.p_value},
        "version": metric.version,
    }


def _metric_from(data: Mapping[str, Any]) -> Metric:
    paired = data.get("paired")
    compared = None
    if paired is not None:
        compared = Paired(_number(paired["difference"]), _maybe(paired, "standard_error"), _maybe(paired, "p_value"))
    per_prompt = tuple(map(_number, _list(data, "per_prompt"))) if "per_prompt" in data else ()
    version = _text(data.get("version", ""))
    return Metric(_number(data["mean"]), _maybe(data, "standard_error"), compared, per_prompt, version)


def _table(data: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = data[name]
    if not isinstance(value, dict):
        raise ValueError(f"{name} is not an object")
    return value


def _list(data: Mapping[str, Any], name: str) -> list[Any]:
    value = data[name]
    if not isinstance(value, list):
        raise ValueError(f"{name} is not a list")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or value.encode("utf-8", "replace").decode() != value:
        raise ValueError(f"expected a string but got {value!r:.100}")
    return value


def _maybe(data: Mapping[str, Any], name: str) -> float | None:
    value = data.get(name)
    return None if value is None else _number(value)


def _number(value: Any) -> float:
    """A finite number.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"expected a finite number but got {value!r}")
    return float(value)
