"""Tracking: `metrics.jsonl` always, Weights & Biases, and the console."""

from __future__ import annotations

from rich.console import Console

from amsd.tracking.console import ConsoleTracker
from amsd.tracking.jsonl import JsonlTracker
from amsd.tracking.protocol import FINISHED, RunInfo, Tracker, Trackers
from amsd.tracking.wandb import WandbTracker

__all__ = ["FINISHED", "ConsoleTracker", "JsonlTracker", "RunInfo", "Tracker", "Trackers", "WandbTracker", "standard"]


def standard(console: Console) -> Trackers:
    """Every tracker of a run; what W&B has to say reaches the file and the console as well."""
    local = Trackers([JsonlTracker(), ConsoleTracker(console)])
    return Trackers([local, WandbTracker(local.on_notice)])
