"""The settings that are compared, and where their runs lie."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from amsd.recipe import load_recipe

COMMON: dict[str, Any] = {
    "evaluation.samples_per_prompt": 8, "evaluation.images": 4, "tracking.mode": "disabled",
    "evaluation.diversity": ["pixels", "shapes:classifier"],
}  # fmt: skip
SWEEP = "cfg-modes"


@dataclass(frozen=True)
class Experiment:
    """Settings that are compared, each as assignments to a recipe."""

    settings: Mapping[str, Mapping[str, Any]]
    common: Mapping[str, Any]
    recipe: str = "shapes"


def _steps(count: int, every: int | None = None) -> dict[str, Any]:
    return {"training.steps": count, "training.checkpoint_every": every or count, "training.keep": count}


ADJOINTS = {"a_k": "current", "a_{k+1}": "next"}
BUFFERED: dict[str, Any] = {"method.name": "buffer-am", "method.buffer.size": 32, "method.buffer.passes": 10}
EXPERIMENTS: dict[str, Experiment] = {
    "lambda": Experiment(
        {f"λ = {value:g}": {"method.reward_multiplier": value} for value in (1.0, 5.0, 25.0, 125.0)}, _steps(32)
    ),
    "buffer": Experiment(
        {
            "on-policy": {},
            "buffer of 32, 10 passes": BUFFERED,
            "the same, importance-weighted": {**BUFFERED, "method.buffer.importance_weighting": True},
        },
        {
            "schedule.num_inference_steps": 50, "guidance.guidance_scale": 5.0,
            "evaluation.num_inference_steps": 10, "evaluation.guidance_scale": [5.0], **_steps(40, 5),
        },
    ),
    "adjoint": Experiment(
        {
            f"N = {count}, {name}": {"schedule.num_inference_steps": count, "method.adjoint_at": at}
            for count in (5, 10, 20, 50)
            for name, at in ADJOINTS.items()
        },
        _steps(16),
    ),
    "outliers": Experiment(
        {
            "mask (the reference)": {},
            "clip": {"method.outliers": "clip"},
            "as they are": {"method.per_sample_threshold_quantile": -1.0},
        },
        _steps(40),
    ),
    "flow": Experiment(
        {
            "recipe `flow`": {},
            **{f"λ = {value:g}": {"method.reward_multiplier": value} for value in (5.0, 25.0, 125.0)},
            **{f"η = {value:g}": {"schedule.eta": value} for value in (0.5, 0.7)},
            **{f"N = {count}": {"schedule.num_inference_steps": count} for count in (5, 20)},
            "last level .2": {"schedule.shift_terminal": 0.2},
            "a_k": {"method.adjoint_at": "current"},
            "mask (the reference)": {"method.per_sample_threshold_quantile": 0.9},
            "buffer of 32, 10 passes": BUFFERED,
        },
        _steps(30),
        "flow",
    ),
    "flow-modes": Experiment(
        {
            "CFG trajectories": {"guidance.guidance_scale": 3.0},
            "no guidance": {},
            "full CFG": {
                "guidance.guidance_scale": 3.0, "guidance.guidance_in_adjoint_computation": True,
                "guidance.guidance_in_control_computation": True,
            },
        },
        {"evaluation.guidance_scale": [3.0], **_steps(30)},
        "flow",
    ),
}  # fmt: skip


def assignments(name: str, setting: str, seed: int) -> list[str]:
    """The `--set` arguments of one run."""
    experiment = EXPERIMENTS[name]
    merged = {**COMMON, **experiment.common, **experiment.settings[setting], "training.seed": seed}
    return [f"{key}={json.dumps(value)}" for key, value in merged.items()]


def folder(out: Path, name: str, setting: str, seed: int) -> Path:
    """Where one run lies."""
    slug = "".join(c if c.isalnum() else "-" for c in setting.replace("λ", "lambda"))
    return out / name / slug / f"seed-{seed}"


def run_missing(out: Path, name: str, setting: str, seed: int) -> None:
    """Train one run to its end, unless that was done before."""
    from amsd.experiment.train import train

    run = folder(out, name, setting, seed)
    finished = run / "finished"
    if finished.is_file():
        return
    start = time.monotonic()
    recipe = load_recipe(EXPERIMENTS[name].recipe, assignments(name, setting, seed))
    train(recipe, run, resume=(run / "recipe.toml").is_file())
    finished.touch()
    typer.echo(f"{run}: {time.monotonic() - start:.0f} s")


def run_sweep(out: Path) -> None:
    """Run the shipped sweep, or go on with it."""
    command = [sys.executable, "-m", "amsd", "sweep", "run", SWEEP, "--output", str(out / SWEEP)]
    subprocess.run([*command, "--set", "override.tracking.mode=disabled"], check=True)
