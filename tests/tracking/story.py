"""A short run as the calls that a trainer makes, for every tracker's test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from amsd.evaluation.result import EvaluationResult, Metric, Paired
from amsd.recipe import from_dict, identity
from amsd.run_directory import RunDirectory
from amsd.tracking import RunInfo, Tracker
from amsd.training.events import CheckpointRecord, Notice, StepRecord

SETTING = "fine-tuning-eta0-cfg7.5-steps50"
OTHER = "fine-tuning-eta1-cfg7.5-steps50"
PROMPTS = ("a red circle", 'a "blue" square [bold]', "ein grüner Stern")


def info(folder: Path, resumed_from: int | None = None, **tracking: Any) -> RunInfo:
    recipe = from_dict(
        {
            "reward": [{"name": "shapes:right"}],
            "schedule": {"eta": 1.0},
            "training": {"steps": 6},
            "evaluation": {"eta": [0.0, 1.0]},
            "tracking": {"mode": "offline", **tracking},
        },
        source="test",
    )
    return RunInfo(recipe, RunDirectory(folder), identity(recipe), resumed_from)


def result(name: str, gain: float | None) -> EvaluationResult:
    """Two metrics; `gain` is the difference to the base model, None for the base model itself."""
    paired = None if gain is None else Paired(gain, 0.013, 1e-6)
    values = tuple(0.5 + (gain or 0) + 0.1 * index for index in range(3))
    metrics = {
        "shapes:right": Metric(sum(values) / 3, 0.011, paired, values, "1"),
        "diversity/shapes": Metric(0.4, None, paired and Paired(-0.02, None, None), (0.4, 0.4, 0.4), "1"),
    }
    return EvaluationResult(name, {"eta": 0.0}, "f" * 64, PROMPTS, metrics)


def grid(folder: Path) -> Path:
    path = folder / "grid.png"
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "red").save(path)
    return path


def evaluate(tracker: Tracker, run: RunDirectory, step: int, gain: float | None) -> None:
    results = [result(SETTING, gain), result(OTHER, gain)]
    tracker.on_evaluation(step, results, {SETTING: grid(run.checkpoint(step) / "samples" / SETTING)})


def step(tracker: Tracker, number: int, loss: float | None = None) -> None:
    for phase in ("rollout", "reward gradient", "adjoint", "loss", "optimizer"):
        tracker.on_phase(phase, number)
    values = {"loss": 10.0 / number if loss is None else loss, "reward/mean": 0.1 * number, "kl": 0.01 * number}
    tracker.on_step(StepRecord(number, values | {"learning_rate": 1e-5, "seconds/rollout": 0.5}))


def checkpoint(tracker: Tracker, run: RunDirectory, number: int) -> None:
    tracker.on_phase("checkpoint", number + 1)
    tracker.on_checkpoint(CheckpointRecord(number, run.checkpoint(number), f"{number:064x}"))
    tracker.on_phase("evaluation", number + 1)
    evaluate(tracker, run, number, 0.1 * number)


def play(tracker: Tracker, start: RunInfo, last: int = 6) -> None:
    """Everything up to step `last`, with a checkpoint and an evaluation after every second step; not the end."""
    tracker.on_start(start)
    evaluate(tracker, start.run, 0, None)
    for number in range((start.resumed_from or 0) + 1, last + 1):
        step(tracker, number)
        if number % 2 == 0:
            checkpoint(tracker, start.run, number)
        if number == 3:
            tracker.on_notice(Notice("reward-hacking", "the reward [rose] while 50% fell", 3, {"x/y": -0.1}))
