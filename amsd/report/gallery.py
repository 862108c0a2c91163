"""Pictures of the base and of the fine-tuned model for the same prompts and noise, over checkpoints."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from amsd.evaluation.result import EvaluationResult
from amsd.report.data import Checkpoint, Run, Samples
from amsd.report.figures.scale import MINUS, number
from amsd.report.story import ShownRun, Story, evaluation, points, setting_of

_LOG = logging.getLogger(__name__)

#: Side of the largest embedded picture in pixels, and below which one is enlarged without smoothing.
LARGEST, PIXEL_ART = 256, 96
_PROMPTS, _SAMPLES, _STEPS, _RUNS = 6, 4, 12, 4
#: The gallery of a sweep shares its room among runs.
_PROMPTS_OF_SWEEP, _STEPS_OF_SWEEP = 3, 8


@dataclass(frozen=True)
class Shot:
    """The pictures of one prompt by one model."""

    pictures: tuple[str, ...]
    """Data URIs."""
    score: str
    """Mean reward over the prompt's samples, or nothing where it is unknown."""


@dataclass(frozen=True)
class Reel:
    """One run's pictures."""

    key: str
    label: str
    steps: tuple[int, ...]
    base: tuple[Shot, ...]
    """By prompt."""
    frames: tuple[tuple[Shot, ...], ...]
    """By step, by prompt."""


@dataclass(frozen=True)
class Gallery:
    """What the picture section shows."""

    prompts: tuple[str, ...]
    reels: tuple[Reel, ...]
    pixelated: bool
    """Whether the pictures are so small that they are enlarged without smoothing."""
    together: bool
    """Whether all runs are shown side by side; else one at a time, to be chosen."""
    setting: str
    reward: str

    def sides(self, prompt: int) -> list[tuple[str, str, Shot]]:
        """What stands side by side at first for a prompt: kind, name and pictures of each model."""
        tuned = self.reels if self.together else self.reels[:1]
        shown = [("tuned", reel.label if self.together else "Fine-tuned", reel.frames[-1][prompt]) for reel in tuned]
        return [("base", "Base", self.reels[0].base[prompt]), *shown]


def build_gallery(story: Story) -> Gallery | None:
    """Chosen prompts and runs with their pictures; None where no checkpoint has pictures."""
    chosen = _chosen(story)
    if not chosen:
        return None
    most, steps = (_PROMPTS, _STEPS) if story.kind == "run" else (_PROMPTS_OF_SWEEP, _STEPS_OF_SWEEP)
    keys = {key for shown in chosen for point in shown.checkpoints for key in point.samples[shown.setting]}
    indices = sorted({prompt for prompt, _ in keys})[:most]
    reels = tuple(_reel(story, shown, indices, steps) for shown in chosen)
    first = chosen[0]
    smallest = next(
        (_side(file) for file in first.checkpoints[0].samples[first.setting].values() if _readable(file)), 0
    )
    prompts = next((names for shown in chosen if (names := _prompts(shown))), ())
    names = tuple(prompts[index] if index < len(prompts) else f"prompt {index}" for index in indices)
    settings = " and ".join(dict.fromkeys(shown.setting for shown in chosen))
    return Gallery(names, reels, smallest <= PIXEL_ART, story.kind == "comparison", settings, story.reward)


@dataclass(frozen=True)
class _Shown:
    """A run with pictures, and the evaluation setting that they were sampled with."""

    entry: ShownRun
    run: Run
    setting: str

    @property
    def checkpoints(self) -> list[Checkpoint]:
        return [point for point in self.run.checkpoints if point.samples.get(self.setting)]


def _pictured(story: Story, entry: ShownRun) -> _Shown | None:
    if entry.run is None:
        return None
    settings = [name for name in (setting_of(story, entry.run), *entry.run.settings) if name is not None]
    shown = (_Shown(entry, entry.run, name) for name in settings)
    return next((candidate for candidate in shown if candidate.checkpoints), None)


def _chosen(story: Story) -> list[_Shown]:
    """The run itself; of a sweep the run with the highest final reward of each mode, then the next best.

    Of a comparison the first run of each group, as far as they have pictures of the same prompts and noise.
    """
    pictured = [shown for entry in story.entries if (shown := _pictured(story, entry)) is not None]
    if story.kind == "comparison":
        alike = [shown for shown in pictured if shown.setting == (story.setting or pictured[0].setting)]
        by_group = {shown.entry.trial or 0: shown for shown in reversed(alike)}
        return [shown for _, shown in sorted(by_group.items())]

    def reward(shown: _Shown) -> float:
        found = points(story, shown.run)
        return found[-1].reward.mean if found else float("-inf")

    ranked = sorted(pictured, key=reward, reverse=True)
    first = list({shown.entry.mode: shown for shown in reversed(ranked)}.values())
    chosen = sorted(first, key=reward, reverse=True) + [shown for shown in ranked if shown not in first]
    return chosen[:_RUNS]


def _reel(story: Story, shown: _Shown, indices: Sequence[int], most: int) -> Reel:
    spread = _spread(shown.checkpoints, most) if story.kind != "comparison" else shown.checkpoints[-1:]

    def shots(point: Checkpoint) -> tuple[Shot, ...]:
        found = evaluation(point, shown.setting)
        samples = point.samples.get(shown.setting, {})
        return tuple(Shot(_embedded(samples, index), _score(found, story.reward, index)) for index in indices)

    entry = shown.entry
    name = entry.group.name if entry.group is not None else entry.label
    mode = f" · {entry.mode.name}" if entry.mode and story.kind == "sweep" else ""
    return Reel(
        key=entry.key,
        label=name + mode,
        steps=tuple(point.step for point in spread),
        base=shots(shown.run.base),
        frames=tuple(shots(point) for point in spread),
    )


def _spread(points: Sequence[Checkpoint], most: int) -> list[Checkpoint]:
    """At most `most` of them, evenly spaced, first and last included."""
    if len(points) <= most:
        return list(points)
    chosen = {round(index * (len(points) - 1) / (most - 1)) for index in range(most)}
    return [points[index] for index in sorted(chosen)]


def _score(found: EvaluationResult | None, reward: str, index: int) -> str:
    metric = found.metrics.get(reward) if found else None
    if metric is None or index >= len(metric.per_prompt):
        return ""
    value = metric.per_prompt[index]
    return f"{round(value, 2) + 0.0:.2f}".replace("-", MINUS) if abs(value) < 100 else number(value)


def _prompts(shown: _Shown) -> tuple[str, ...]:
    results = (evaluation(point, shown.setting) for point in (shown.run.base, *shown.run.checkpoints))
    return next((result.prompts for result in results if result is not None and result.prompts), ())


def _embedded(samples: Samples, prompt: int) -> tuple[str, ...]:
    own = [samples[key] for key in sorted(samples) if key[0] == prompt][:_SAMPLES]
    return tuple(data_uri(file) for file in own if _readable(file))


def _readable(file: Path) -> bool:
    """Whether a picture can be decoded; one that was damaged is left out, with a warning."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            image.load()
    except (OSError, ValueError, SyntaxError) as error:
        _LOG.warning("%s cannot be shown: %s", file, error)
        return False
    return True


def _side(file: Path) -> int:
    from PIL import Image

    with Image.open(file) as image:
        return max(image.size)


def data_uri(file: Path) -> str:
    """A picture as a data URI: small ones as they are (PNG), others scaled to `LARGEST` and JPEG."""
    from PIL import Image

    with Image.open(file) as image:
        stream = io.BytesIO()
        if max(image.size) <= PIXEL_ART:
            image.convert("RGB").save(stream, "PNG", optimize=True)
            kind = "png"
        else:
            small = image.convert("RGB")
            small.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
            small.save(stream, "JPEG", quality=82, optimize=True)
            kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
