"""Experiments on the embedded model, and the page that reports them: `python benchmarks/science.py OUT`.

Every run is an ordinary `amsd` training in OUT/<experiment>/<setting>/seed-<s>, skipped where it is finished; guidance modes
and noise levels are the shipped sweep `cfg-modes` in OUT/cfg-modes. So the command can be stopped and repeated.
`docs/science.md` and its plots are rewritten from what is there.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from amsd.recipe import Recipe, load_recipe

COMMON: dict[str, Any] = {
    "evaluation.samples_per_prompt": 8, "evaluation.images": 4, "tracking.mode": "disabled",
    "evaluation.diversity": ["pixels", "shapes:classifier"],
}  # fmt: skip
SWEEP = "cfg-modes"


@dataclass(frozen=True)
class Experiment:
    """Settings that are compared, each as assignments to the recipe `shapes`."""

    settings: Mapping[str, Mapping[str, Any]]
    common: Mapping[str, Any]


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
}  # fmt: skip


def assignments(name: str, setting: str, seed: int) -> list[str]:
    """The `--set` arguments of one run."""
    experiment = EXPERIMENTS[name]
    merged = {**COMMON, **experiment.common, **experiment.settings[setting], "training.seed": seed}
    return [f"{key}={json.dumps(value)}" for key, value in merged.items()]


def main(
    out: Annotated[Path, typer.Argument(help="Folder for the runs.")],
    only: Annotated[list[str] | None, typer.Option(help="Experiments to run; unset: all.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each setting (the sweep file has its own).")] = 3,
    page: Annotated[Path, typer.Option(help="Page to write.")] = Path("docs/science.md"),
    write: Annotated[bool, typer.Option(help="Whether to write the page.")] = True,
) -> None:
    """Run what is missing and write the page."""
    for seed in range(seeds):  # all settings of a seed first: a stopped command leaves comparable runs
        for name, experiment in EXPERIMENTS.items():
            if only and name not in only:
                continue
            for setting in experiment.settings:
                _run(folder(out, name, setting, seed), load_recipe("shapes", assignments(name, setting, seed)))
    if not only or SWEEP in only:
        command = [sys.executable, "-m", "amsd", "sweep", "run", SWEEP, "--output", str(out / SWEEP)]
        subprocess.run([*command, "--set", "override.tracking.mode=disabled"], check=True)
    if write:
        from science_page import write_page

        write_page(out, page)
        typer.echo(page)


def folder(out: Path, name: str, setting: str, seed: int) -> Path:
    """Where one run lies."""
    slug = "".join(c if c.isalnum() else "-" for c in setting.replace("λ", "lambda"))
    return out / name / slug / f"seed-{seed}"


def _run(run: Path, recipe: Recipe) -> None:
    from amsd.experiment.train import train

    finished = run / "finished"
    if finished.is_file():
        return
    start = time.monotonic()
    train(recipe, run, resume=(run / "recipe.toml").is_file())
    finished.touch()
    typer.echo(f"{run}: {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    typer.run(main)
