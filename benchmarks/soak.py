"""An hour of buffered training with evaluation and tracking: does anything grow?

    python -m benchmarks.soak --minutes 60 --output /tmp/soak
    python -m benchmarks.soak --plot /tmp/soak --to docs/images/soak.svg

`amsd train shapes-buffer` runs in a process of its own, with a checkpoint and an evaluation every few steps, with W&B
(offline) and TensorBoard. Every few seconds its memory, handles, threads, processor time and logged steps are written
to `samples.jsonl`. At the end it gets a SIGTERM, which must end it with a checkpoint and exit code 75. `--plot` draws
the samples of a run, also while it goes on, and prints what the first and the last quarter have on average.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import psutil

ROOT = Path(__file__).parents[1]
SETTINGS = (
    "training.steps=1000000", "training.checkpoint_every=10", "training.keep=2", "optimizer.learning_rate=1e-6",
    "optimizer.prompts_per_step=8", "optimizer.micro_batch=8", "method.buffer.size=16", "evaluation.prompts=4",
    "evaluation.samples_per_prompt=2", "evaluation.images=2", 'tracking.trackers=["wandb", "tensorboard"]',
    "tracking.mode=offline",
)  # fmt: skip
INTERVAL = 5.0


@dataclass(frozen=True)
class Reading:
    """The state of the training at one moment."""

    seconds: float
    """Since the start."""
    cpu: float
    """Processor time of the training's own process, in seconds."""
    memory: int
    """Resident bytes of the training's own process."""
    others: int
    """Resident bytes of its child processes (W&B's)."""
    handles: int
    """Open files and sockets."""
    threads: int
    steps: int
    """Lines of optimizer steps in the log."""
    lines: int
    """All lines of the log."""


def sample(process: psutil.Process, began: float, log: Path) -> Reading:
    """Look at the training once.

    Raises:
        psutil.Error: it has ended.
    """
    content = log.read_bytes() if log.is_file() else b""
    with process.oneshot():
        times = process.cpu_times()
        return Reading(
            seconds=time.monotonic() - began,
            cpu=times.user + times.system,
            memory=process.memory_info().rss,
            others=sum(_memory(child) for child in process.children(recursive=True)),
            handles=process.num_fds(),
            threads=process.num_threads(),
            steps=content.count(b'"loss"'),
            lines=content.count(b"\n"),
        )


def _memory(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:  # it has just ended
        return 0


def soak(output: Path, minutes: float) -> int:
    """Train for so long, then end the training by a signal; returns its exit code."""
    run = output / "run"
    output.mkdir(parents=True, exist_ok=True)
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    resume = ["--resume"] if run.exists() else []
    began = time.monotonic()
    with (output / "said.txt").open("a") as said, (output / "samples.jsonl").open("a") as samples:
        training = subprocess.Popen(
            [sys.executable, "-m", "amsd", "train", "shapes-buffer", "--output", str(run), *settings, *resume],
            env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=said, stderr=said, cwd=ROOT,
        )  # fmt: skip
        process = psutil.Process(training.pid)
        while training.poll() is None and time.monotonic() - began < 60 * minutes:
            time.sleep(INTERVAL)
            try:
                taken = sample(process, began, run / "metrics.jsonl")
            except psutil.Error:
                break
            samples.write(json.dumps(asdict(taken)) + "\n")
            samples.flush()
        training.send_signal(signal.SIGTERM)
        return training.wait()


def read(output: Path) -> list[Reading]:
    """The samples of a run from its first logged step on."""
    lines = (output / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    return [taken for line in lines if (taken := Reading(**json.loads(line))).steps]


def step_costs(samples: Sequence[Reading], width: int = 24) -> list[tuple[float, float]]:
    """(minutes, processor seconds per logged step, checkpoints and evaluations included) over `width` samples each.

    Processor time is not disturbed by what else runs on the machine.
    """
    found = []
    for before, after in zip(samples, samples[width:], strict=False):
        if after.steps > before.steps:
            found.append((after.seconds / 60, (after.cpu - before.cpu) / (after.steps - before.steps)))
    return found


def summary(samples: Sequence[Reading]) -> str:
    """First and last quarter beside each other, as a table in Markdown."""
    quarter = max(2, len(samples) // 4)
    parts = samples[:quarter], samples[-quarter:]

    def row(name: str, values: Sequence[float], form: str) -> str:
        return f"| {name} | " + " | ".join(form.format(value) for value in values) + " |"

    return "\n".join(
        [
            f"{samples[-1].seconds / 60:.0f} minutes, {samples[-1].steps:,} steps, {samples[-1].lines:,} lines of log",
            "",
            "| | first quarter | last quarter |",
            "|---|---|---|",
            row("memory of the training, MiB", [mebibytes(each.memory for each in part) for part in parts], "{:.1f}"),
            row("memory of W&B's process, MiB", [mebibytes(each.others for each in part) for part in parts], "{:.1f}"),
            row("open files and sockets, at most", [max(each.handles for each in part) for part in parts], "{:.0f}"),
            row("threads, at most", [max(each.threads for each in part) for part in parts], "{:.0f}"),
            row(
                "processor time per step, evaluation included, s",
                [(part[-1].cpu - part[0].cpu) / max(1, part[-1].steps - part[0].steps) for part in parts],
                "{:.3f}",
            ),
        ]
    )  # fmt: skip


def mebibytes(values: Iterable[int]) -> float:
    """Mean of numbers of bytes."""
    return fmean(values) / 2**20


def plot(samples: Sequence[Reading], to: Path) -> None:
    """Four panels over minutes."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    minutes = [each.seconds / 60 for each in samples]
    figure, panels = pyplot.subplots(2, 2, figsize=(9, 5), sharex=True, layout="constrained")
    (memory, handles), (threads, cost) = panels
    memory.plot(minutes, [each.memory / 2**20 for each in samples], label="training")
    memory.plot(minutes, [each.others / 2**20 for each in samples], label="W&B's process")
    memory.set_ylabel("resident memory, MiB")
    memory.legend()
    handles.plot(minutes, [each.handles for each in samples])
    handles.set_ylabel("open files and sockets")
    threads.plot(minutes, [each.threads for each in samples])
    threads.set_ylabel("threads")
    costs = step_costs(samples)
    cost.plot([at for at, _ in costs], [value for _, value in costs])
    cost.set_ylabel("processor time per step, s")
    for panel in panels.flat:
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
    for panel in panels[1]:
        panel.set_xlabel("minutes")
    to.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(to, metadata={"Date": None})


def main() -> None:
    """Soak, or plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--output", type=Path, default=Path("soak"))
    parser.add_argument("--plot", type=Path, help="folder of a soak to draw and summarize")
    parser.add_argument("--to", type=Path, default=Path("soak.svg"))
    chosen = parser.parse_args()
    if chosen.plot is None:
        code = soak(chosen.output, chosen.minutes)
        print(f"ended with exit code {code}\n{summary(read(chosen.output))}")
        sys.exit(0 if code == 75 else 1)
    samples = read(chosen.plot)
    plot(samples, chosen.to)
    print(summary(samples))


if __name__ == "__main__":
    main()
