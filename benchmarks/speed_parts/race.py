"""Work and time until the held-out reward is what the reference's procedure ends with, on the embedded model."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
import workbench

from amsd.diffusion.loading import load_family
from amsd.diffusion.noise import normal
from amsd.diffusion.rollout import rollout
from amsd.prompts import load_prompts
from amsd.recipe import Recipe, load_recipe
from amsd.training.problem import ControlProblem
from speed_parts.counting import Counter
from speed_parts.reference import Reference


@dataclass(frozen=True)
class Race:
    """The setting that all runners share."""

    updates: int = 25
    """Updates of the reference's procedure."""
    on_policy_updates: int = 36
    """Updates of amsd, on-policy: 35% of the reference's work."""
    buffer_updates: int = 28
    """Updates of amsd from its buffer: 15% of the reference's work."""
    batch: int = 8
    rate: float = 4e-4
    warmup: int = 4
    reward_multiplier: float = 50.0
    loss_steps: int = 4
    reference_steps: int = 50
    steps: int = 10
    passes: int = 4
    samples: int = 4
    """Held-out images per prompt in an evaluation."""
    every: int = 3
    """Updates between evaluations of amsd."""

    def updates_of(self, name: str) -> int:
        """Updates of a runner."""
        return {"amsd on-policy": self.on_policy_updates, "amsd buffer": self.buffer_updates}.get(name, self.updates)


@dataclass(frozen=True)
class RacePoint:
    """A policy after some work."""

    updates: int
    forwards: float
    seconds: float
    reward: float
    by_prompt: tuple[float, ...]


RUNNERS = ("reference", "amsd on-policy", "amsd buffer")


def run(race: Race, name: str, seed: int) -> list[RacePoint]:
    """Train, and evaluate on common noise: the reference at its start and end, amsd on its way."""
    recipe = _recipe(race, name, seed)
    problem, accelerator = workbench.set_up(recipe, load_family(recipe.model).pipeline, torch.device("cpu"))
    judge = _judge(race)
    counter = Counter(problem)
    points: list[RacePoint] = []
    clock = _Clock()

    def evaluate(updates: int) -> None:
        with counter.paused(), clock.stopped():
            found = judge(problem)
        points.append(RacePoint(updates, counter.total, clock.seconds, fmean(found), tuple(found)))

    updates = race.updates_of(name)
    evaluate(0)
    clock.start()
    if name == "reference":
        prompts = list(load_prompts("embedded:shapes", "train").texts)
        reference = Reference(
            problem, prompts, batch=race.batch, rate=race.rate, warmup=race.warmup, seed=seed,
            reward_multiplier=race.reward_multiplier, loss_steps=race.loss_steps,
        )  # fmt: skip
        for number in range(1, race.updates + 1):
            reference.update(number)
        evaluate(race.updates)
        return points

    def after(step: int) -> None:
        if step % race.every == 0 or step == updates:
            evaluate(step)

    prompts = list(load_prompts("embedded:shapes", "train").texts)
    listener = workbench.StepTimer(updates, on_done=after)
    workbench.run_steps(problem, accelerator, listener, prompts)
    return points


def _recipe(race: Race, name: str, seed: int) -> Recipe:
    """The recipe `shapes` with the race's setting; the reference's own where it differs."""
    updates = race.updates_of(name)
    same = [
        f"training.seed={seed}", f"training.steps={updates + 1}", f"training.checkpoint_every={updates + 1}",
        f"optimizer.learning_rate={race.rate}", f"optimizer.warmup_steps={race.warmup}",
        f"optimizer.prompts_per_step={race.batch}", f"optimizer.micro_batch={race.batch}",
        f"method.reward_multiplier={race.reward_multiplier}",
        f"method.timesteps_per_trajectory={race.loss_steps}", "evaluation.every=0", "tracking.mode=disabled",
    ]  # fmt: skip
    own = {
        "reference": [f"schedule.num_inference_steps={race.reference_steps}", "schedule.final_step=midpoint"],
        "amsd on-policy": [f"schedule.num_inference_steps={race.steps}"],
        "amsd buffer": [
            f"schedule.num_inference_steps={race.steps}", "method.name=buffer-am",
            f"method.buffer.size={2 * race.batch}", f"method.buffer.passes={race.passes}",
        ],
    }  # fmt: skip
    return load_recipe("shapes", [*same, *own[name]])


def _judge(race: Race) -> Callable[[ControlProblem], list[float]]:
    """Mean reward of each held-out prompt, sampled with 10 steps at eta = 1 whatever the training's steps are."""
    recipe = load_recipe("shapes", ["schedule.num_inference_steps=10"])
    held_out = load_prompts("embedded:shapes", "evaluation").texts
    steps = None

    @torch.no_grad()
    def judge(problem: ControlProblem) -> list[float]:
        nonlocal steps
        steps = steps or problem.family.steps(recipe.schedule)
        texts = [prompt for prompt in held_out for _ in range(race.samples)]
        keys = [(0, "held out", row) for row in range(len(texts))]
        noise = normal(keys, (len(steps) + 1, *problem.family.latent_shape), problem.device, torch.float32)
        predict = replace(problem, steps=steps).finetuned(problem.encode(texts), 1.0)
        images = problem.family.decode(rollout(predict, steps, noise).terminal).clamp(0, 1)
        rewards = problem.reward(images, texts).total.view(len(held_out), race.samples)
        return [float(value) for value in rewards.mean(1)]

    return judge


class _Clock:
    """Processor time of this process, not wall-clock time: other programs on the machine do not enter."""

    def __init__(self) -> None:
        self.seconds, self._since = 0.0, time.process_time()

    def start(self) -> None:
        self.seconds, self._since = 0.0, time.process_time()

    def stopped(self) -> Any:
        return _Stopped(self)


class _Stopped:
    def __init__(self, clock: _Clock) -> None:
        self.clock = clock

    def __enter__(self) -> None:
        self.clock.seconds += time.process_time() - self.clock._since

    def __exit__(self, *unused: object) -> None:
        self.clock._since = time.process_time()


def run_missing(out: Path, race: Race, seeds: int) -> None:
    """Run what has no file yet, seed by seed: a stopped command leaves comparable runs."""
    for seed in range(seeds):
        for name in RUNNERS:
            path = out / f"race-{name.replace(' ', '-')}-{seed}.json"
            if path.exists():
                continue
            points = run(race, name, seed)
            content = {"race": asdict(race), "name": name, "seed": seed, "points": [asdict(point) for point in points]}
            path.write_text(json.dumps(content) + "\n")


def read(out: Path) -> dict[tuple[str, int], list[RacePoint]]:
    """What was run, by runner and seed."""
    found = {}
    for path in sorted(out.glob("race-*.json")):
        content = json.loads(path.read_text())
        points = [RacePoint(**{**point, "by_prompt": tuple(point["by_prompt"])}) for point in content["points"]]
        found[content["name"], content["seed"]] = points
    return found


@dataclass(frozen=True)
class RaceOutcome:
    """What amsd needed for the reference's final reward, in one seed."""

    seed: int
    work: float | None
    """Share of the reference's forward-equivalents; None if it never got there."""
    time: float | None
    """Share of its processor time."""
    difference: float
    """Held-out reward of the policy there (or of the last) minus the reference's, mean over prompts."""
    standard_error: float


def outcome(reference: Sequence[RacePoint], points: Sequence[RacePoint], seed: int) -> RaceOutcome:
    """The first evaluated policy whose held-out reward is the reference's final one, or more."""
    goal = reference[-1]
    arrived = next((point for point in points if point.reward >= goal.reward), None)
    there = arrived or points[-1]
    differences = [mine - its for mine, its in zip(there.by_prompt, goal.by_prompt, strict=True)]
    error = stdev(differences) / len(differences) ** 0.5
    return RaceOutcome(
        seed, None if arrived is None else there.forwards / goal.forwards,
        None if arrived is None else there.seconds / goal.seconds, fmean(differences), error,
    )  # fmt: skip
