"""What is logged besides `metrics.jsonl`: values at a position of an axis, the same for every backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amsd.run_directory import picture_places
from amsd.tracking.values import evaluation_values
from amsd.training.events import CheckpointRecord, Notice, StepRecord

if TYPE_CHECKING:
    from PIL.Image import Image

    from amsd.evaluation.result import EvaluationResult

STEP = "step"
EVALUATION_STEP = "eval/step"


@dataclass(frozen=True)
class Table:
    """Rows under named columns."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Picture:
    """A PNG file, which may be gone when a slow backend comes to it."""

    path: Path
    caption: str

    def image(self) -> Image | None:
        """The picture (RGB), also where a deleted checkpoint has left it meanwhile; None if it is gone."""
        from PIL import Image

        for place in picture_places(self.path):
            try:
                with Image.open(place) as found:
                    return found.convert("RGB")
            except OSError:  # it is not there, or damaged
                continue
        return None


Value = float | str | Table | Picture


@dataclass(frozen=True)
class Entry:
    """Values that belong together."""

    axis: str
    """`step` or `eval/step`: both count optimizer steps, but evaluations may come late."""
    position: int
    values: Mapping[str, Value]
    notice: Notice | None = None
    """The notice that this entry stands for, if it stands for one; `values` is empty then."""


def step_entry(record: StepRecord) -> Entry:
    """Scalars of an optimizer step."""
    return Entry(STEP, record.step, dict(record.values))


def checkpoint_entry(record: CheckpointRecord) -> Entry:
    """Where the checkpoint is and what identifies its weights (the weights themselves stay on disk)."""
    values: dict[str, Value] = {
        "checkpoint/step": record.step,
        "checkpoint/path": str(record.path),
        "checkpoint/weights_sha256": record.weights_sha256,
    }
    return Entry(STEP, record.step, values)


def notice_entry(notice: Notice, step: int) -> Entry:
    """A notice, at its own step or the newest one."""
    return Entry(STEP, notice.step or step, {}, notice)


def evaluation_entry(
    step: int, results: Sequence[EvaluationResult], pictures: Mapping[str, Path], first_setting: str
) -> Entry:
    """Scalars, a table of every prompt and the grid of samples.

    The first setting is named `eval/<metric>`, any further one `eval/<setting>/<metric>`.
    """
    values: dict[str, Value] = {}
    for result in results:
        prefix = "eval" if result.name == first_setting else f"eval/{result.name}"
        values |= evaluation_values(result, prefix)
        values[f"prompts/{result.name}"] = _prompt_table(step, result)
    for name, path in pictures.items():
        values[f"samples/{name}"] = Picture(path, f"step {step}: a prompt per row")
    return Entry(EVALUATION_STEP, step, values)


def _prompt_table(step: int, result: EvaluationResult) -> Table:
    """A prompt per row, a metric per column."""
    metrics = result.metrics
    rows = [
        (step, prompt, *(metric.per_prompt[index] for metric in metrics.values()))
        for index, prompt in enumerate(result.prompts)
    ]
    return Table(("step", "prompt", *metrics), tuple(rows))
