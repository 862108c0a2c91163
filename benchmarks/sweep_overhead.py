"""What the sweep's machinery costs per trial, and how that grows with the number of trials.

    python benchmarks/sweep_overhead.py [--trials 500] [--storage sqlite|journal|URL] [--sampler random|tpe|gp]
        [--launcher local|ray]

Trials cost nothing (a closed form instead of training), so all time is overhead: claiming a trial, sampling, resolving
the recipe, recognizing copies, reporting two intermediate values, and writing the outcome. Wall time depends on what
else the machine does; processor time of the worker does not, so growth is judged by it.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from amsd.recipe.catalog import folder
from amsd.recipe.load import read_toml
from amsd.sweep.jobs import Ended, Job, Monitor, RunLog
from amsd.sweep.load import plan_from
from amsd.sweep.results import load_sweep
from amsd.sweep.study import StudyHandle, create
from amsd.sweep.worker import Worker


@dataclass
class Trivial:
    """Ends at once; notes when each trial came, on the clock and in processor seconds."""

    times: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)

    def run(self, job: Job, monitor: Monitor) -> Ended:
        self.times.append(time.perf_counter())
        self.busy.append(time.process_time())
        value = -((job.recipe.schedule.eta - 0.8) ** 2)
        evaluations = {step: {"setting": {"eval/shapes:right": value * step}} for step in (1, 2)}
        monitor(RunLog({1: evaluations[1]}))
        monitor(RunLog(evaluations))
        return Ended("complete", RunLog(evaluations))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--storage", default="sqlite")
    parser.add_argument("--sampler", default="random")
    parser.add_argument("--launcher", default="local", choices=["local", "ray"])
    options = parser.parse_args()
    tree = {
        "name": "overhead",
        "recipe": "shapes",
        "search": {
            "schedule.eta": {"low": 0.3, "high": 1.5},
            "method.reward_multiplier": {"low": 1.0, "high": 300.0, "log": True},
            "guidance.guidance_scale": {"choices": [1.0, 3.0, 5.0, 7.5]},
        },
        "objective": [{"metric": "shapes:right"}],
        "sampler": {"name": options.sampler, "seed": 0},
        "pruner": {"name": "median"},
        "budget": {"trials": options.trials},
    }
    plan = plan_from(tree, read_toml(folder("recipes") / "shapes.toml"))
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        urls = {"sqlite": None, "journal": f"journal:{directory}/journal.log"}
        begun = time.perf_counter()
        handle = create(plan, directory, urls.get(options.storage, options.storage))
        queued = time.perf_counter() - begun
        times, busy = measured(handle, options.launcher)
        begun = time.perf_counter()
        results = load_sweep(handle.url, "overhead")
        read = time.perf_counter() - begun
    ran = len(times)
    how = f"{options.launcher}, {options.storage}, {options.sampler}"
    print(f"{how}: {len(results.trials)} trials ({ran} run), queued in {queued:.1f} s")
    print(f"per trial, wall time:      {growth(times)}")
    if busy:
        print(f"per trial, processor time: {growth(busy)}")
    print(f"reading all results: {read:.2f} s")


def measured(handle: StudyHandle, launcher: str) -> tuple[list[float], list[float]]:
    """When each trial began: seconds on the clock, and seconds of this process (not where trials run elsewhere)."""
    if launcher == "local":
        executor = Trivial()
        Worker(handle, executor).run()
        return executor.times, executor.busy
    import ray

    from amsd.sweep.launchers.ray import drive
    from amsd.sweep.launchers.ray_executor import Need

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    drive(handle, 1, Need(1, 0), Trivial())
    ray.shutdown()
    trials = load_sweep(handle.url, "overhead").trials
    return [trial.started.timestamp() for trial in trials if trial.started is not None], []


def growth(times: list[float]) -> str:
    """Median of the differences, and how those of the last fifth compare with those of the first."""
    steps = [1000 * (later - earlier) for earlier, later in itertools.pairwise(times)]
    fifth = max(1, len(steps) // 5)
    first, last = statistics.median(steps[:fifth]), statistics.median(steps[-fifth:])
    return (
        f"median {statistics.median(steps):.1f} ms; first fifth {first:.1f} ms, last fifth {last:.1f} ms "
        f"({last / first:.2f}x)"
    )


if __name__ == "__main__":
    main()
