"""Training with N = 10 and N = 20 against N = 50 at equal network work, on the embedded model.

    python benchmarks/fewer_steps.py OUT                       # nine runs, about six minutes of one CPU core
    python benchmarks/fewer_steps.py OUT --steps 10 --seed 0   # one of them

Guided trajectories, adjoint a_{k+1}, the same batch, rate and lambda. Every policy is judged on the 16 held-out
captions, two images each, on common noise, with the sampler of 10 and that of 50 steps. A run keeps a file, so that a
stopped command goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev

import torch
import workbench

from amsd.diffusion.loading import load_family
from amsd.diffusion.noise import normal
from amsd.diffusion.rollout import rollout
from amsd.prompts import load_prompts
from amsd.recipe import Recipe, load_recipe
from amsd.training.problem import ControlProblem

COUNTS, SEEDS, SAMPLERS = (10, 20, 50), (0, 1, 2), (10, 50)
WORK, SAMPLES, SCALE = 10_000, 2, 5.0
"""Forward-equivalents of a training, images per caption, and guidance scale."""
COMMON = [
    "optimizer.prompts_per_step=8", "optimizer.micro_batch=8", f"guidance.guidance_scale={SCALE}", "evaluation.every=0",
    "tracking.mode=disabled",
]  # fmt: skip


def updates_of(count: int) -> int:
    """Updates that the work pays with `count` steps."""
    recipe = load_recipe("shapes", [*COMMON, f"schedule.num_inference_steps={count}"])
    return max(1, round(WORK / workbench.forwards_per_step(recipe)))


def recipe_of(count: int, seed: int) -> Recipe:
    """The recipe `shapes` with guidance, a small batch and `count` steps."""
    longer = updates_of(count) + 1
    length = [f"training.steps={longer}", f"training.checkpoint_every={longer}", f"training.seed={seed}"]
    return load_recipe("shapes", [*COMMON, *length, f"schedule.num_inference_steps={count}"])


@torch.no_grad()
def judged(problem: ControlProblem, count: int) -> list[float]:
    """Mean reward of each held-out caption, sampled with `count` guided steps at eta = 1."""
    steps = problem.family.steps(load_recipe("shapes", [f"schedule.num_inference_steps={count}"]).schedule)
    found = []
    for prompt in load_prompts("embedded:shapes", "evaluation").texts:
        keys = [(0, "held out", prompt, row) for row in range(SAMPLES)]
        noise = normal(keys, (len(steps) + 1, *problem.family.latent_shape), problem.device, torch.float32)
        predict = replace(problem, steps=steps).finetuned(problem.encode([prompt] * SAMPLES), SCALE)
        images = problem.family.decode(rollout(predict, steps, noise).terminal).clamp(0, 1)
        found.append(float(problem.reward(images, [prompt] * SAMPLES).total.mean()))
    return found


def run(count: int, seed: int) -> dict[str, list[float]]:
    """Rewards by caption of the policy that `count` steps train, by sampler; those of the base model for 0 steps."""
    recipe = recipe_of(count or max(COUNTS), seed)
    problem, accelerator = workbench.set_up(recipe, load_family(recipe.model).pipeline, torch.device("cpu"))
    if count:
        prompts = list(load_prompts("embedded:shapes", "train").texts)
        workbench.run_steps(problem, accelerator, workbench.StepTimer(updates_of(count)), prompts)
    return {str(number): judged(problem, number) for number in SAMPLERS}


def table(out: Path) -> str:
    """Gain of each N, and against N = 50 paired by caption and seed."""
    lines = ["| N | updates | judged with | gain | against N = 50 |", "|---|---|---|---|---|"]
    gains: dict[tuple[int, str], list[float]] = {}
    base = json.loads((out / "steps-0-0.json").read_text())
    for count in COUNTS:
        for file in sorted(out.glob(f"steps-{count}-*.json")):
            found = json.loads(file.read_text())
            for sampler in map(str, SAMPLERS):
                pairs = zip(found[sampler], base[sampler], strict=True)
                gains.setdefault((count, sampler), []).extend(after - before for after, before in pairs)
    for (count, sampler), values in gains.items():
        whole = gains.get((50, sampler), [])
        against = ""
        if count != 50 and len(whole) == len(values):
            against = _shown([one - other for one, other in zip(values, whole, strict=True)])
        lines.append(f"| {count} | {updates_of(count)} | {sampler} steps | {_shown(values)} | {against} |")
    return "\n".join(lines)


def _shown(values: list[float]) -> str:
    return f"{fmean(values):+.3f} ± {stdev(values) / sqrt(len(values)):.3f}"


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, choices=COUNTS)
    parser.add_argument("--seed", type=int, choices=SEEDS)
    wanted = parser.parse_args()
    wanted.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    if not (out := wanted.out / "steps-0-0.json").exists():
        out.write_text(json.dumps(run(0, 0)))
    for seed in SEEDS if wanted.seed is None else (wanted.seed,):
        for count in COUNTS if wanted.steps is None else (wanted.steps,):
            file = wanted.out / f"steps-{count}-{seed}.json"
            if not file.exists():
                file.write_text(json.dumps(run(count, seed)))
    print(table(wanted.out))


if __name__ == "__main__":
    main()
