"""Pictures of the base and of the fine-tuned model for the same prompts and noise, over checkpoints."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from amsd.report.data import Checkpoint, Run, Samples
from amsd.report.evaluations import Evaluation
from amsd.report.figures.scale import number
from amsd.report.story import Entry, Story, evaluation, points

#: Side of the largest embedded picture in pixels, and below which one is enlarged without smoothing.
LARGEST, PIXEL_ART = 256, 96
_PROMPTS, _SAMPLES, _STEPS, _RUNS = 6, 4, 12, 4
#: The gallery of a sweep shares its room among runs.
_PROMPTS_OF_SWEEP, _STEPS_OF_SWEEP = 4, 8


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
    setting: str
    reward: str


def build_gallery(story: Story) -> Gallery | None:
    """Chosen prompts and runs with their pictures; None where no checkpoint has pictures."""
    setting = next((name for name in story.settings if any(_pictured(run, name) for run in story.runs)), None)
    if setting is None:
        return None
    entries = _chosen(story, setting)
    most = _PROMPTS if story.kind == "run" else _PROMPTS_OF_SWEEP
    steps = _STEPS if story.kind == "run" else _STEPS_OF_SWEEP
    runs = [entry.run for entry in entries if entry.run is not None]
    indices = sorted({p for run in runs for point in run.checkpoints for p, _ in point.samples.get(setting, {})})[:most]
    reels = tuple(_reel(story, entry, run, setting, indices, steps) for entry, run in zip(entries, runs, strict=True))
    smallest = _side(next(iter(next(p for p in runs[0].checkpoints if setting in p.samples).samples[setting].values())))
    prompts = _prompts(runs, setting)
    names = tuple(prompts[index] if index < len(prompts) else f"prompt {index}" for index in indices)
    return Gallery(names, reels, smallest <= PIXEL_ART, setting, story.reward)


def _pictured(run: Run, setting: str) -> bool:
    return any(setting in point.samples for point in run.checkpoints)


def _chosen(story: Story, setting: str) -> list[Entry]:
    """The run itself; of a sweep the run with the highest final reward of each mode, then the next best."""
    pictured = [entry for entry in story.entries if entry.run is not None and _pictured(entry.run, setting)]

    def reward(entry: Entry) -> float:
        found = points(story, entry.run) if entry.run else []
        return found[-1].reward.mean if found else float("-inf")

    ranked = sorted(pictured, key=reward, reverse=True)
    first = list({entry.mode: entry for entry in reversed(ranked)}.values())
    chosen = sorted(first, key=reward, reverse=True) + [entry for entry in ranked if entry not in first]
    return chosen[:_RUNS]


def _reel(story: Story, entry: Entry, run: Run, setting: str, indices: Sequence[int], most: int) -> Reel:
    shown = _spread([point for point in run.checkpoints if setting in point.samples], most)

    def shots(point: Checkpoint) -> tuple[Shot, ...]:
        found = evaluation(point, setting)
        samples = point.samples.get(setting, {})
        return tuple(Shot(_embedded(samples, index), _score(found, story.reward, index)) for index in indices)

    mode = f" · {entry.mode.name}" if entry.mode and story.kind == "sweep" else ""
    return Reel(
        key=entry.key,
        label=entry.label + mode,
        steps=tuple(point.step for point in shown),
        base=shots(run.base),
        frames=tuple(shots(point) for point in shown),
    )


def _spread(points: Sequence[Checkpoint], most: int) -> list[Checkpoint]:
    """At most `most` of them, evenly spaced, first and last included."""
    if len(points) <= most:
        return list(points)
    chosen = {round(index * (len(points) - 1) / (most - 1)) for index in range(most)}
    return [points[index] for index in sorted(chosen)]


def _score(found: Evaluation | None, reward: str, index: int) -> str:
    metric = found.metrics.get(reward) if found else None
    if metric is None or index >= len(metric.per_prompt):
        return ""
    return number(metric.per_prompt[index], 2)


def _prompts(runs: Sequence[Run], setting: str) -> tuple[str, ...]:
    for run in runs:
        for point in (run.base, *run.checkpoints):
            found = evaluation(point, setting)
            if found is not None and found.prompts:
                return found.prompts
    return ()


def _embedded(samples: Samples | Mapping[tuple[int, int], Path], prompt: int) -> tuple[str, ...]:
    own = [samples[key] for key in sorted(samples) if key[0] == prompt][:_SAMPLES]
    return tuple(data_uri(file) for file in own)


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
