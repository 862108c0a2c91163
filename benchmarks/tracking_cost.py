"""What W&B costs the training thread, and a run's end, while W&B's own process is well, dead or frozen.

    python benchmarks/tracking_cost.py --steps 200

A tracker (offline) is told of steps of 50 ms; the time inside its calls is measured before and after the fault.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean

ROOT = Path(__file__).parents[1]
STEP = 0.05


def calls(tracker: object, first: int, count: int) -> list[float]:
    """Seconds that the training thread spends in each of `count` steps' calls."""
    from tests.tracking import story

    took = []
    for number in range(first, first + count):
        began = time.perf_counter()
        story.step(tracker, number)  # type: ignore[arg-type]
        took.append(time.perf_counter() - began)
        time.sleep(STEP)
    return took


def measure(fault: str, steps: int) -> str:
    """A row of the table."""
    from amsd.tracking import BackgroundTracker
    from amsd.training.events import Notice
    from tests.tracking import story
    from tests.tracking.test_wandb import strike

    said: list[Notice] = []
    with tempfile.TemporaryDirectory() as folder:
        tracker = BackgroundTracker("wandb", said.append)
        tracker.on_start(story.info(Path(folder)))
        before = calls(tracker, 1, steps)
        if fault != "none":
            strike(fault)
        after = calls(tracker, steps + 1, 4 * steps)
        began = time.monotonic()
        tracker.on_end("finished", None)
        end = time.monotonic() - began
    share = 100 * fmean(after) / STEP
    times = f"{1e3 * fmean(before):.2f} ms | {1e3 * fmean(after):.2f} ms | {share:.1f}%"
    return f"| {fault} | {times} | {end:.1f} s | {len(said)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="before the fault; four times as many after it")
    chosen = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    print("| W&B's process | a call before | after | of a step of 50 ms | end | notices |\n|---|---|---|---|---|---|")
    for fault in ("none", "killed", "stopped"):
        print(measure(fault, chosen.steps), flush=True)


if __name__ == "__main__":
    main()
