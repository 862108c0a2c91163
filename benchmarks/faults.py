"""Ends runs in every way that is not their last step, resumes them, and prints what was lost: `nox -s faults`.

    python -m benchmarks.faults --kills 60 --ends 20 --disk 10

A run of a tiny Stable Diffusion is killed at random moments (`--kills`), ended by the signals that schedulers send,
once and twice (`--ends`), and given a file system that refuses files beyond a size (`--disk`). After each it is
resumed, and its log and weights are compared with those of a run that was never disturbed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amsd.run_directory import RunDirectory, damage

ROOT = Path(__file__).parents[1]
STEPS = 12
SETTINGS = (f"training.steps={STEPS}", "training.checkpoint_every=1", "training.keep=2", "tracking.trackers=none")
#: Logged values that tell of time, not of the training.
TIMES = ("seconds/", "share/", "performance/", "collection/", "images_per_second", "time")
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT)


@dataclass
class Tally:
    """A row of the table."""

    what: str
    tried: int = 0
    lost: int = 0
    """Runs whose log, checkpoints or last weights differ from those of the undisturbed run, or that did not go on."""
    raw: int = 0
    """Ends with a traceback."""

    def count(self, run: Path, whole: Path, said: str, went_on: bool) -> None:
        """Take in one run after its resume."""
        self.lost += not went_on or log(run) != log(whole) or weights(run) != weights(whole)
        self.raw += "Traceback (most recent call last)" in said


def log(run: Path) -> list[dict[str, Any]]:
    """Lines of `metrics.jsonl` without times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith(TIMES)} for line in lines]


def weights(run: Path) -> dict[int, str]:
    """Identity of the weights of each whole checkpoint by step."""
    directory = RunDirectory(run)
    whole = [step for step in directory.steps() if damage(directory.checkpoint(step)) is None]
    manifests = {step: directory.checkpoint(step) / "manifest.json" for step in whole}
    return {step: json.loads(file.read_bytes())["weights_sha256"] for step, file in manifests.items()}


def start(recipe: Path, run: Path, limit: int | None = None) -> subprocess.Popen[str]:
    """Begin a run or go on with it; `limit` is the size in bytes that no file may exceed."""
    resume = ["--resume"] if RunDirectory(run).used else []
    settings = [part for setting in SETTINGS for part in ("--set", setting)]

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # scripts start their background with it ignored
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.Popen(
        [sys.executable, "-m", "amsd", "train", str(recipe), "--output", str(run), *settings, *resume],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=prepare, cwd=ROOT,
    )  # fmt: skip


def steps_of(run: Path) -> int:
    """Optimizer steps that are logged, also while the file is being written."""
    file = run / "metrics.jsonl"
    return file.read_bytes().count(b'"loss"') if file.is_file() else 0


def wait_for(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Return once `step` is logged or the process has ended."""
    while steps_of(run) < step and process.poll() is None:
        time.sleep(0.005)


def finish(recipe: Path, run: Path) -> tuple[bool, str]:
    """Resume a run to its end; whether that worked, and what was said."""
    process = start(recipe, run)
    said = process.communicate()[1]
    return process.returncode == 0, said


def kills(recipe: Path, folder: Path, whole: Path, count: int, draw: random.Random) -> Tally:
    """SIGKILL at random: while starting, stepping, writing a checkpoint, evaluating, resuming."""
    tally = Tally("SIGKILL")
    number = 0
    while tally.tried < count:
        run, said = folder / f"kill-{number}", ""
        number += 1
        for _ in range(min(4, count - tally.tried)):
            process = start(recipe, run)
            wait_for(run, min(STEPS - 1, steps_of(run) + draw.randint(1, 3)), process)
            time.sleep(draw.uniform(0, 0.5))
            process.kill()
            said += process.communicate()[1]
            tally.tried += 1
        went_on, later = finish(recipe, run)
        tally.count(run, whole, said + later, went_on)
    return tally


def ends(recipe: Path, folder: Path, whole: Path, count: int, draw: random.Random) -> Tally:
    """Every signal in turn, once and twice: no logged step may be missing from the newest checkpoint."""
    tally = Tally("announced end")
    for number in range(count):
        run, chosen = folder / f"end-{number}", SIGNALS[number % len(SIGNALS)]
        process = start(recipe, run)
        wait_for(run, draw.randint(1, STEPS - 3), process)
        time.sleep(draw.uniform(0, 0.5))
        for _ in range(1 + number // len(SIGNALS) % 2):
            process.send_signal(chosen)
            time.sleep(0.02)
        said = process.communicate()[1]
        expected = 130 if chosen == signal.SIGINT else 75
        kept = max(RunDirectory(run).steps(), default=0) == steps_of(run)
        went_on, later = finish(recipe, run)
        tally.tried += 1
        tally.count(run, whole, said + later, went_on and kept and process.returncode == expected)
    return tally


def disk(recipe: Path, folder: Path, whole: Path, count: int, draw: random.Random) -> Tally:
    """No file may exceed a size (as on a full disk): one message, exit code 1, whole checkpoints, and a resume."""
    tally = Tally("disk fault")
    for number in range(count):
        run = folder / f"disk-{number}"
        process = start(recipe, run, limit=draw.choice((2, 4, 8, 40, 75, 120)) * 1024)
        said = process.communicate()[1]
        sound = all(damage(RunDirectory(run).checkpoint(step)) is None for step in RunDirectory(run).steps())
        one = said.count("cannot be written") == 1 and process.returncode == 1
        went_on, later = finish(recipe, run)
        tally.tried += 1
        tally.count(run, whole, said + later, went_on and sound and one)
    return tally


def main() -> None:
    """Try what was asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for part in ("kills", "ends", "disk"):
        parser.add_argument(f"--{part}", type=int, default=0, help="how many")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    os.environ |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    from tests.cli.commands import write_recipe

    with tempfile.TemporaryDirectory(prefix="amsd-faults-") as name:
        folder, draw = Path(name), random.Random(chosen.seed)
        os.environ["AMSD_CACHE"] = str(folder / "cache")
        recipe, whole = write_recipe(folder), folder / "whole"
        went, said = finish(recipe, whole)
        if not went:
            sys.exit(said)
        print(f"{'what':<16}{'tried':>8}{'lost':>8}{'raw':>8}", flush=True)
        for part, count in ((kills, chosen.kills), (ends, chosen.ends), (disk, chosen.disk)):
            if count:
                row = part(recipe, folder, whole, count, draw)
                print(f"{row.what:<16}{row.tried:>8}{row.lost:>8}{row.raw:>8}", flush=True)


if __name__ == "__main__":
    main()
