"""Experiments on the embedded model, and the page that reports them: `python benchmarks/science.py OUT`.

Every run is an ordinary `amsd` training in OUT/<experiment>/<setting>/seed-<s>, skipped where it is finished, so the
command can be stopped and repeated. `docs/science.md` and its plots are rewritten from what is there.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import typer

from amsd.recipe import Recipe, load_recipe

REWARD = "shapes:right"
DIVERSITY = "diversity/shapes:classifier"
ALIGNMENT = "shapes:alignment"
COMMON = {"evaluation.samples_per_prompt": 8, "evaluation.images": 4, "tracking.mode": "disabled"}
GUIDED = {"guidance.guidance_scale": 5.0, "evaluation.guidance_scale": [5.0], "evaluation.eta": [1.0, 0.0]}
MODES: dict[str, dict[str, Any]] = {
    "CFG trajectories": {},
    "no guidance in fine-tuning": {"guidance.guidance_scale": 1.0},
    "full CFG": {
        "guidance.guidance_in_adjoint_computation": True,
        "guidance.guidance_in_control_computation": True,
    },
}


@dataclass(frozen=True)
class Experiment:
    """Settings that are compared, each as assignments to the recipe `shapes`."""

    title: str
    settings: Mapping[str, Mapping[str, Any]]
    common: Mapping[str, Any]


def _steps(count: int) -> dict[str, Any]:
    return {"training.steps": count, "training.checkpoint_every": count}


EXPERIMENTS: dict[str, Experiment] = {
    "lambda": Experiment(
        "Reward and diversity against λ",
        {f"λ = {value:g}": {"method.reward_multiplier": value} for value in (1.0, 5.0, 25.0, 125.0)},
        _steps(32),
    ),
    "cfg-modes": Experiment(
        "The three modes of guidance, equal updates, evaluated at guidance 5",
        MODES,
        {"method.reward_multiplier": 10.0, **GUIDED, **_steps(24)},
    ),
    "buffer": Experiment(
        "Buffer against on-policy, equal updates, 50 guided steps",
        {
            "on-policy": {},
            "buffer of 32, 10 passes": {
                "method.name": "buffer-am", "method.buffer.size": 32, "method.buffer.passes": 10,
            },
        },
        {"schedule.num_inference_steps": 50, "evaluation.num_inference_steps": 10, **GUIDED, **_steps(20)},
    ),
    "eta": Experiment(
        "Noise level of the sampler (the theory asks for η ≥ 1)",
        {f"η = {value:g}": {"schedule.eta": value} for value in (0.5, 0.7, 1.0, 1.2)},
        {"evaluation.eta": [1.0], **_steps(24)},
    ),
    "adjoint": Experiment(
        "Which adjoint the loss matches, by number of steps",
        {
            f"N = {count}, {name}": {"schedule.num_inference_steps": count, "method.adjoint_at": at}
            for count in (5, 10, 20, 50)
            for name, at in (("a_k", "current"), ("a_{k+1}", "next"))
        },
        _steps(16),
    ),
}  # fmt: skip


def assignments(experiment: Experiment, setting: str, seed: int) -> list[str]:
    """The `--set` arguments of one run."""
    merged = {**COMMON, **experiment.common, **experiment.settings[setting], "training.seed": seed}
    return [f"{key}={json.dumps(value)}" for key, value in merged.items()]


def main(
    out: Annotated[Path, typer.Argument(help="Folder for the runs.")],
    only: Annotated[list[str] | None, typer.Option(help="Experiments to run; unset: all.")] = None,
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    page: Annotated[Path, typer.Option(help="Page to write.")] = Path("docs/science.md"),
) -> None:
    """Run what is missing and write the page."""
    for seed in range(seeds):  # all settings of a seed first: a stopped command leaves comparable runs
        for name, experiment in EXPERIMENTS.items():
            if only and name not in only:
                continue
            for setting in experiment.settings:
                _run(folder(out, name, setting, seed), load_recipe("shapes", assignments(experiment, setting, seed)))
    from science_page import write_page

    write_page(out, page)
    typer.echo(page)


def folder(out: Path, name: str, setting: str, seed: int) -> Path:
    """Where one run lies."""
    slug = "".join(c if c.isalnum() else "-" for c in setting.replace("λ", "lambda").replace("η", "eta"))
    return out / name / slug / f"seed-{seed}"


def _run(run: Path, recipe: Recipe) -> None:
    from amsd.experiment.train import train

    if (run / "seconds.json").is_file():
        return
    start = time.monotonic()
    train(recipe, run, resume=(run / "recipe.toml").is_file())
    (run / "seconds.json").write_text(json.dumps(time.monotonic() - start), encoding="utf-8")
    typer.echo(f"{run}: {time.monotonic() - start:.0f} s")


@dataclass(frozen=True)
class Outcome:
    """One metric of one setting over its seeds."""

    seeds: int
    value: float
    value_error: float
    difference: float
    difference_error: float
    """Standard error of the mean over seeds of the paired difference: between seeds and within prompts combined."""


def outcomes(out: Path, name: str, evaluation: str | None = None) -> Iterator[tuple[str, dict[str, Outcome]]]:
    """Metrics of every setting of an experiment that has finished runs, under one evaluation setting."""
    for setting in EXPERIMENTS[name].settings:
        runs = [path.parent for path in sorted(folder(out, name, setting, 0).parent.glob("seed-*/seconds.json"))]
        found = [result for run in runs if (result := _result(run, evaluation)) is not None]
        if found:
            yield setting, {metric: _outcome([result[metric] for result in found]) for metric in found[0]}


def seconds_per_update(out: Path, name: str, setting: str) -> tuple[float, float]:
    """Mean seconds per optimizer step, and total training seconds, over the seeds of a setting."""
    per_step, totals = [], []
    for path in sorted(folder(out, name, setting, 0).parent.glob("seed-*/metrics.jsonl")):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        seconds = [line["seconds/total"] for line in lines if "seconds/total" in line]
        per_step.append(mean(seconds))
        totals.append(sum(seconds))
    return mean(per_step), mean(totals)


def _result(run: Path, evaluation: str | None) -> dict[str, Any] | None:
    last = (run / "checkpoints" / "latest").read_text(encoding="utf-8").strip()
    files = sorted((run / "checkpoints" / last / "evaluation").glob("*.json"))
    chosen = [file for file in files if evaluation is None or evaluation in file.name]
    if not chosen:
        return None
    metrics: dict[str, Any] = json.loads(chosen[0].read_text(encoding="utf-8"))["metrics"]
    return metrics


def _outcome(results: list[dict[str, Any]]) -> Outcome:
    count = len(results)

    def error(values: list[float], within: list[float]) -> float:
        between = stdev(values) / math.sqrt(count) if count > 1 else 0.0
        return math.hypot(between, mean(within) / math.sqrt(count))

    values = [result["mean"] for result in results]
    differences = [result["paired"]["difference"] for result in results]
    return Outcome(
        count,
        mean(values),
        error(values, [result["standard_error"] for result in results]),
        mean(differences),
        error(differences, [result["paired"]["standard_error"] for result in results]),
    )


if __name__ == "__main__":
    typer.run(main)
