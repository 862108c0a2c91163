"""What an update costs on-policy and from a buffer, on the embedded model: `python benchmarks/buffer_speed.py`.

Both train in turn in one process, ROUNDS times, so that the load of the machine meets both. A round of the buffer is
one collection and all updates that it serves; a round on-policy is a few updates.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from amsd.experiment.train import train
from amsd.recipe import Recipe, load_recipe
from amsd.recipe.cost import forwards_per_step

COMMON = [
    "schedule.num_inference_steps=50", "guidance.guidance_scale=5.0", "evaluation.every=0", "tracking.mode=disabled",
]  # fmt: skip


def main(
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    size: Annotated[int, typer.Option(help="Trajectories of the buffer; a multiple of 16.")] = 32,
    passes: Annotated[int, typer.Option(min=1)] = 10,
) -> None:
    """Train, count, and end with one JSON object."""
    per_collection = passes * size // 16
    buffered = ["method.name=buffer-am", f"method.buffer.size={size}", f"method.buffer.passes={passes}"]
    recipes = {
        "on-policy": load_recipe("shapes", [*COMMON, "training.steps=3"]),
        "buffer": load_recipe("shapes", [*COMMON, *buffered, f"training.steps={per_collection}"]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in recipes}
    for _ in range(rounds):
        for name, recipe in recipes.items():
            seconds[name].append(seconds_per_update(recipe))
    found: dict[str, object] = {
        name: {
            "forwards_per_update": round(forwards_per_step(recipe)),
            "seconds_per_update": round(median(seconds[name]), 3),
        }
        for name, recipe in recipes.items()
    }
    ratios = [slow / quick for slow, quick in zip(seconds["on-policy"], seconds["buffer"], strict=True)]
    forwards = [forwards_per_step(recipe) for recipe in recipes.values()]
    found["times_fewer_forwards"] = round(forwards[0] / forwards[1], 2)
    found["times_quicker"] = round(median(ratios), 2)
    typer.echo(json.dumps(found, indent=1))


def seconds_per_update(recipe: Recipe) -> float:
    """Mean over the updates of one short run; what is outside of updates (start, checkpoint) does not count."""
    with tempfile.TemporaryDirectory() as folder:
        run = train(recipe, Path(folder) / "run", resume=False).run
        lines = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    values = [line["seconds/total"] for line in lines if "seconds/total" in line]
    return sum(values) / len(values)


if __name__ == "__main__":
    typer.run(main)
