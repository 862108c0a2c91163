"""Does it matter which batches tell an outlier? `python benchmarks/outlier_threshold.py OUT` on the embedded model.

Trains a recipe under both values of `method.outlier_threshold` with the same seeds. Both policies of a seed are
evaluated on the same prompts and noise, so the difference of two means is one number per seed.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated

import typer

from amsd.experiment.train import train
from amsd.recipe import load_recipe

RULES = ("current", "previous")


def main(
    out: Annotated[Path, typer.Argument(help="Folder of the runs; those that are there are read, not trained again.")],
    recipe: Annotated[str, typer.Option(help="Recipe of the embedded model.")] = "shapes",
    seeds: Annotated[int, typer.Option(min=2)] = 3,
) -> None:
    """Train, evaluate, and end with one JSON object."""
    found = {rule: [final(out, recipe, rule, seed) for seed in range(seeds)] for rule in RULES}
    report: dict[str, object] = {"recipe": recipe, "seeds": seeds}
    for key in found["current"][0]:
        values = {rule: [run[key] for run in runs] for rule, runs in found.items()}
        differences = [b - a for a, b in zip(*(values[rule] for rule in RULES), strict=True)]
        report[key] = {rule: round(mean(values[rule]), 4) for rule in RULES} | {
            "previous_minus_current": round(mean(differences), 4),
            "standard_error": round(stdev(differences) / seeds**0.5, 4),
        }
    typer.echo(json.dumps(report, indent=1))


def final(out: Path, name: str, rule: str, seed: int) -> dict[str, float]:
    """Paired gains of the last checkpoint over the base model, and the KL and masked share of the last ten steps."""
    folder = out / f"{name}-{rule}-{seed}"
    settings = [f"method.outlier_threshold={rule}", f"training.seed={seed}", "tracking.mode=disabled"]
    recipe = load_recipe(name, [*settings, "training.checkpoint_every=1000", "evaluation.images=0"])
    if not (folder / "checkpoints" / "latest").exists():
        train(recipe, folder, resume=False)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    ends = ("/difference",)
    figures = {key: value for key, value in lines[-1].items() if key.startswith("eval/") and key.endswith(ends)}
    steps = [line for line in lines if "kl" in line][-10:]
    return figures | {key: mean(line[key] for line in steps) for key in ("kl", "masked_share")}


if __name__ == "__main__":
    typer.run(main)
