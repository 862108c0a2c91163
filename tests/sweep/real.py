"""Small real trainings of the embedded model, as the trials of a sweep."""

from __future__ import annotations

import json
from pathlib import Path

from amsd.sweep.schema import SweepPlan
from tests.sweep.conftest import MakePlan

QUICK = {
    "training.steps": 4,
    "training.checkpoint_every": 1,
    "optimizer.prompts_per_step": 4,
    "optimizer.micro_batch": 2,
    "optimizer.warmup_steps": 1,
    "evaluation.prompts": 2,
    "evaluation.samples_per_prompt": 2,
}
TIMES = {"poll_seconds": 0.2, "heartbeat_seconds": 1.0, "lost_after_seconds": 20.0, "terminate_seconds": 30.0}


def real_plan(make_plan: MakePlan, tracking: str = "disabled", **changes: object) -> SweepPlan:
    """Four steps with a checkpoint each; `tracking` is the mode of W&B."""
    return make_plan(
        override={**QUICK, "tracking.mode": tracking}, execution={"command": None, **TIMES}, **changes
    )  # fmt: skip


def logged_steps(run: Path) -> list[int]:
    """Optimizer steps in a run's log, as often as they stand there."""
    if not (run / "metrics.jsonl").is_file():
        return []
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record["step"] for record in records if "loss" in record]
