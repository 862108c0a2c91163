"""Tracking: `metrics.jsonl` and the console always; W&B, TensorBoard and trackio as the recipe says."""

from __future__ import annotations

from rich.console import Console

from amsd.recipe import Tracking
from amsd.tracking.background import BackgroundTracker
from amsd.tracking.console import ConsoleTracker
from amsd.tracking.jsonl import JsonlTracker
from amsd.tracking.protocol import FINISHED, RunInfo, Tracker, Trackers

__all__ = [
    "FINISHED", "BackgroundTracker", "ConsoleTracker", "JsonlTracker", "RunInfo", "Tracker", "Trackers", "standard",
]  # fmt: skip


def standard(console: Console, tracking: Tracking) -> Trackers:
    """Every tracker of a run; what the backends have to say reaches the file and the console as well."""
    local = Trackers([JsonlTracker(), ConsoleTracker(console)])
    wanted = [name for name in tracking.trackers if name != "wandb" or tracking.mode != "disabled"]
    return Trackers([local, *(BackgroundTracker(name, local.on_notice) for name in wanted)])
