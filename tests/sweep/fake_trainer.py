"""Stands for `amsd train RECIPE --output DIR [--resume] [--processes N]`: writes the same files, trains nothing.

The metric is a closed form of the recipe: `shapes:right` after step t is -(eta - 0.8)^2 * t/steps. It resumes from its
last checkpoint, writes one and exits with 75 when it gets SIGTERM, and appends every step it computes to `steps.txt`,
so that a test can see what was computed twice.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from pathlib import Path

from amsd.recipe import load_recipe


def save(checkpoints: Path, step: int) -> None:
    name = f"step-{step:06d}"
    (checkpoints / name).mkdir(exist_ok=True)
    (checkpoints / name / "weights.txt").write_text(f"{step}\n")
    (checkpoints / "latest").write_text(f"{name}\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    recipe = load_recipe(options.recipe)
    run: Path = options.output
    checkpoints = run / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    done = max((int(path.name[5:]) for path in checkpoints.glob("step-*")), default=0)
    with (run / "starts.txt").open("a") as stream:
        stream.write(f"{os.getpid()} from {done}\n")
    agent = {name: os.environ.get(name) for name in ("WANDB_RUN_ID", "WANDB_SWEEP_ID")}
    (run / "agent.json").write_text(json.dumps(agent))
    if "fail" in (recipe.tracking.project or ""):
        raise SystemExit(f"Error: no such weights for trial {run.parent.parent.name}")
    held = Path(os.environ.get("FAKE_HELD_WHILE", "/nowhere"))
    seconds = float(os.environ.get("FAKE_STEP_SECONDS", "0"))
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    total, eta = recipe.training.steps, recipe.schedule.eta
    setting = recipe.evaluation_settings[0].name
    for step in range(done + 1, total + 1):
        while step == total // 2 + 1 and held.exists():  # in the middle of the run, for as long as the test wants
            time.sleep(0.05)
            if told:
                break
        time.sleep(seconds)
        if told:  # an announced end, as `amsd train` does it
            save(checkpoints, step - 1)
            raise SystemExit(75)
        with (run / "steps.txt").open("a") as stream:
            stream.write(f"{step}\n")
        lines = [{"step": step, "loss": 1 / step, "kl": eta * step}]
        if step % recipe.training.checkpoint_every == 0 or step == total:
            value = -((eta - 0.8) ** 2) * step / total + 0.001 * recipe.training.seed
            lines.append({"step": step, "evaluation": setting, "eval/shapes:right": value,
                          "eval/shapes:alignment": 1 - eta, "eval/shapes:right/difference": value})  # fmt: skip
            save(checkpoints, step)
        with (run / "metrics.jsonl").open("a") as stream:
            stream.writelines(json.dumps(line) + "\n" for line in lines)


if __name__ == "__main__":
    main()
