"""torch.compile through amsd's own option, in a child process: it may take longer than there is time."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import workbench

from gpu_check.children import run_child
from gpu_check.record import Check
from gpu_check.steps import CASES, Case

MEASURED = "AMSD_GPU_CHECK"
"""Environment variable that carries the parent's measured rates to the child."""


def compiled(check: Check) -> None:
    """Run the child, and say how it ended."""
    limit = check.left - 12 if check.cuda else min(150.0, check.left - 5)
    what, best = check.best()
    rates = {"tflop": check.tflop, "best": best, "what": what, "bf16": check.limits.get("bf16", 0.0)}
    run_child(check, "compile", ["--compile-child"], {MEASURED: json.dumps(rates)}, limit)


def in_child(check: Check) -> None:
    """Steps without and with the option: seconds to the first, seconds of the next, recompilations."""
    rates = json.loads(os.environ.get(MEASURED, "{}"))
    check.tflop, check.limits["bf16"] = rates.get("tflop", 0.0), rates.get("bf16", 0.0)
    if rates.get("best"):
        check.bare[rates["what"], 0] = rates["best"]
    small = CASES[0].cut() if not check.cuda else replace(CASES[0], inference_steps=10)
    for option in (False, True):
        check.attempt("compile", lambda: _steps(check, replace(small, compiled=option)), case=f"compile = {option}")  # noqa: B023


def _steps(check: Check, case: Case) -> None:
    from torch._dynamo.utils import counters

    recipe = case.recipe()
    pipeline = workbench.random_pipeline(check.options.tiny, check.device)
    problem, accelerator = workbench.set_up(recipe, pipeline, check.device)
    found = workbench.run_steps(problem, accelerator, workbench.StepTimer(4 if case.compiled else 2, check.sync))
    forwards, (_, best) = workbench.forwards_per_step(recipe), check.best()
    for step, (seconds, values) in enumerate(zip(found.seconds, found.values, strict=True), 1):
        rate = forwards / seconds
        check.say(
            "compile", compiled=case.compiled, step=step, s=round(seconds, 3),
            images_per_s=round(case.batch / seconds, 3), forwards_per_s=round(rate, 1),
            share_of_best_bare=round(rate / best, 3) if best else None, peak_gib=check.peak(),
            phases={k.split("/")[1]: round(v, 2) for k, v in values.items() if k.startswith("seconds/")},
            recompiles=sum(counters["recompiles"].values()), graphs=counters["stats"].get("unique_graphs"),
            graph_breaks=sum(counters["graph_break"].values()),
        )  # fmt: skip
