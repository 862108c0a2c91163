"""Forward-equivalents and seconds per trained trajectory, counted by hooks and timed in turn."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import workbench

from amsd.diffusion.loading import load_family
from amsd.recipe import Recipe, load_recipe
from speed_parts.counting import Counter
from speed_parts.reference import Reference

BATCH = 2
GUIDED, UNGUIDED = 7.5, 1.0


@dataclass(frozen=True)
class Procedure:
    """A way to train; what is not named is as in the recipe `shapes`."""

    name: str
    steps: int
    guidance: float
    passes: int = 1
    reference: bool = False

    def recipe(self) -> Recipe:
        sets = [
            f"schedule.num_inference_steps={self.steps}", f"guidance.guidance_scale={self.guidance}",
            f"optimizer.prompts_per_step={BATCH}", f"optimizer.micro_batch={BATCH}", "training.steps=1000",
            "training.checkpoint_every=1000", "evaluation.every=0", "tracking.mode=disabled",
        ]  # fmt: skip
        if self.reference:
            sets += ["schedule.final_step=midpoint"]
        elif self.passes > 1:
            sets += ["method.name=buffer-am", f"method.buffer.size={BATCH}", f"method.buffer.passes={self.passes}"]
        return load_recipe("shapes", sets)


PROCEDURES = (
    Procedure("reference, on-policy", 50, GUIDED, reference=True),
    Procedure("reference, buffer of 10 passes", 50, GUIDED, passes=10, reference=True),
    Procedure("amsd, on-policy", 50, GUIDED),
    Procedure("amsd, buffer of 10 passes", 50, GUIDED, passes=10),
    Procedure("amsd, N = 20", 20, GUIDED),
    Procedure("amsd, N = 10", 10, GUIDED),
    Procedure("amsd, N = 10, buffer of 10 passes", 10, GUIDED, passes=10),
    Procedure("amsd, N = 10, unguided", 10, UNGUIDED),
)


def measure(procedures: Sequence[Procedure] = PROCEDURES, rounds: int = 3) -> list[dict[str, Any]]:
    """One row per procedure: forward-equivalents and processor seconds per trained trajectory.

    A round is all passes of one collection. The procedures take turns; the indices that a loss uses are drawn anew each
    time, so amsd's counts vary between rounds and are averaged.
    """
    runners = [_Runner(procedure) for procedure in procedures]
    for _ in range(rounds):
        for runner in runners:
            runner.round()
    return [
        {
            "procedure": runner.procedure.name, "steps": runner.procedure.steps, "guidance": runner.procedure.guidance,
            "forwards": runner.counter.total / (rounds * BATCH * runner.procedure.passes),
            "seconds": median(runner.seconds) / (BATCH * runner.procedure.passes),
        }
        for runner in runners
    ]  # fmt: skip


class _Runner:
    """One procedure with its own networks, advanced by one collection and its passes at a time."""

    def __init__(self, procedure: Procedure) -> None:
        self.procedure, recipe = procedure, procedure.recipe()
        family = load_family(recipe.model)
        self.problem, self.accelerator = workbench.set_up(recipe, family.pipeline, torch.device("cpu"))
        self.counter = Counter(self.problem)
        self.seconds: list[float] = []
        self.done = 0
        if procedure.reference:
            self.reference = Reference(
                self.problem, workbench.PROMPTS, batch=BATCH, rate=1e-6, warmup=0, seed=0, reward_multiplier=1.0,
                loss_steps=4, passes=procedure.passes,
            )  # fmt: skip
        else:
            self.updates = self._updates()

    def round(self) -> None:
        start = time.process_time()
        for _ in range(self.procedure.passes):
            self.done += 1
            if self.procedure.reference:
                self.reference.update(self.done)
            else:
                next(self.updates)
        self.seconds.append(time.process_time() - start)

    def _updates(self) -> Iterator[None]:
        with workbench.stepping(self.problem, self.accelerator) as step:
            while True:
                step()
                yield
