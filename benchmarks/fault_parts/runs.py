"""Runs of a tiny Stable Diffusion that are killed, ended, starved of disk and damaged, then resumed and compared."""

from __future__ import annotations

import json
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amsd.run_directory import RunDirectory, damage
from benchmarks.fault_parts.children import Child, Strike, amsd
from benchmarks.fault_parts.damaging import damage_file
from benchmarks.fault_parts.tally import Attempt

STEPS = 8
SETTINGS = (f"training.steps={STEPS}", "training.checkpoint_every=2", "training.keep=2")
#: Logged values that tell of time, not of the training.
TIMES = ("seconds/", "share/", "performance/", "collection/", "time")
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT)
#: How often a run is killed before it may finish.
KILLS = 4

#: Moments to be killed at, and how often each happens in a run of `STEPS` steps, about.
MOMENTS: tuple[tuple[str, str, int], ...] = (
    ("start", "amsd.experiment.train:write_start", 1),
    ("start", "amsd.experiment.start:write_text", 2),
    ("step", "amsd.training.update:take_step", 6),
    ("step", "amsd.training.methods.adjoint_matching:AMTrainer.compute_experience", 6),
    ("log", "amsd.tracking.jsonl:JsonlTracker._write", 12),
    ("checkpoint", "amsd.files:_sync_file", 20),
    ("checkpoint", "amsd.files:sync_folder", 30),
    ("checkpoint", "amsd.training.writing:write_json", 4),
    ("checkpoint", "amsd.training.writing:shutil.rmtree", 6),
    ("checkpoint", "amsd.run_directory:RunDirectory.point", 6),
    ("checkpoint", "amsd.training.persistence:optimizer_as_it_is", 3),
    ("evaluation", "amsd.evaluation.evaluator:Evaluator._completed", 3),
    ("evaluation", "amsd.evaluation.result:EvaluationResult.save", 4),
    ("evaluation", "amsd.experiment.evaluate:compare_pictures", 3),
    ("evaluation", "amsd.training.checkpoint:CheckpointScores._write", 3),
    ("retention", "amsd.training.checkpoint:_settle", 3),
    ("retention", "amsd.training.checkpoint:retire", 2),
    ("resume", "amsd.training.keeper:load_training", 1),
    ("resume", "amsd.tracking.jsonl:trim", 1),
    ("resume", "amsd.training.checkpoint:discard_after", 1),
    ("resume", "amsd.experiment.train:clear_unfinished", 1),
    ("resume", "amsd.files:write_text", 8),
    ("tracker upload", "amsd.tracking.wandb:WandbBackend.log", 10),
    ("tracker upload", "amsd.tracking.wandb:WandbBackend.close", 1),
    ("tracker upload", "amsd.tracking.background:BackgroundTracker.on_end", 1),
)


@dataclass(frozen=True)
class Scene:
    """Where runs are made, what they do, and the run that nothing disturbed."""

    folder: Path
    recipe: Path

    @property
    def whole(self) -> Path:
        """The undisturbed run."""
        return self.folder / "whole"

    def train(self, run: Path, *settings: str, before: Callable[[], None] | None = None) -> Child:
        """Begin a run or go on with it."""
        resume = ["--resume"] if RunDirectory(run).used else []
        options = [part for setting in (*SETTINGS, *settings) for part in ("--set", setting)]
        arguments = ["train", str(self.recipe), "--output", str(run), *options, *resume]
        return amsd(arguments, run.with_suffix(".said"), before)

    def finish(self, run: Path, *settings: str) -> str:
        """Resume a run to its end; what differs from the undisturbed one, in words."""
        code = self.train(run, *settings).wait()
        return f"the resume ended with {code}" if code else self.difference(run)

    def difference(self, run: Path) -> str:
        """What of a finished run is not as it should be."""
        if log(run) != log(self.whole):
            return "the log differs"
        if weights(run) != weights(self.whole):
            return f"checkpoints differ: {weights(run)} {weights(self.whole)}"
        left = [path.name for path in run.rglob(".*") if "wandb" not in path.parts]
        return f"left behind: {left}" if left else ""


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


def steps_of(run: Path) -> int:
    """Optimizer steps that are logged, also while the file is being written."""
    file = run / "metrics.jsonl"
    return file.read_bytes().count(b'"loss"') if file.is_file() else 0


def wait_for(run: Path, step: int, child: Child) -> None:
    """Return once `step` is logged or the child has ended."""
    while steps_of(run) < step and child.poll() is None:
        time.sleep(0.002)


def wait_until_it_listens(child: Child) -> None:
    """Return once the command catches signals, which a busy machine may delay by seconds; before, nothing is begun."""
    status, bit = Path(f"/proc/{child.pid}/status"), 1 << (signal.SIGUSR1 - 1)
    while child.poll() is None:
        caught = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("SigCgt"))
        if int(caught.split()[1], 16) & bit:
            return
        time.sleep(0.01)


def kill(scene: Scene, number: int, draw: random.Random) -> Attempt:
    """SIGKILL four times in one run, at chosen moments and at random ones; whole checkpoints after each."""
    run = scene.folder / f"kill-{number}"
    killed, torn = 0, ""
    for index in range(KILLS):
        kind, target, often = MOMENTS[(number + index) % len(MOMENTS)]
        tracked = ['tracking.trackers="wandb"'] if kind == "tracker upload" else []
        strike = Strike(target, draw.randint(1, often), draw.random() < 0.5)
        child = scene.train(run, *tracked, before=strike.arm)
        if index == KILLS - 1:  # at any time
            wait_for(run, draw.randint(1, STEPS), child)
            time.sleep(draw.uniform(0, 0.3))
            child.send(signal.SIGKILL)
        killed += child.wait() == -signal.SIGKILL  # some moments do not come: a resume has fewer steps
        directory = RunDirectory(run)
        broken = [damage(directory.checkpoint(step)) for step in directory.steps()]
        torn = torn or next((text for text in broken if text), "")
    fault = torn or scene.finish(run)
    return Attempt(fault, run.with_suffix(".said").read_text(errors="replace"), killed)


def end(scene: Scene, number: int, draw: random.Random) -> Attempt:
    """Every signal in turn, once and twice: no logged step may be missing from the newest checkpoint."""
    run, chosen = scene.folder / f"end-{number}", SIGNALS[number % len(SIGNALS)]
    child = scene.train(run)
    step = draw.randint(0, STEPS - 2)
    wait_for(run, step, child)
    if step == 0:
        wait_until_it_listens(child)
    time.sleep(draw.uniform(0, 0.1))
    for _ in range(1 + number // len(SIGNALS) % 2):
        child.send(chosen)
        time.sleep(0.02)
    code = child.wait()
    expected = 130 if chosen == signal.SIGINT else 75
    newest = max(RunDirectory(run).steps(), default=0)
    fault = "" if code == expected else f"{chosen.name} ended with {code}"
    if newest != steps_of(run):
        fault = fault or f"logged to {steps_of(run)}, kept to {newest}"
    if code == expected and "Continue with: amsd train" not in child.said:
        fault = fault or "the command that goes on was not said"
    return Attempt(fault or scene.finish(run), run.with_suffix(".said").read_text(errors="replace"))


def starve(scene: Scene, number: int, draw: random.Random) -> Attempt:
    """No file may exceed a size (as on a full disk): one message, exit code 1, whole checkpoints, and a resume."""
    run = scene.folder / f"disk-{number}"
    limit = draw.choice((2, 4, 8, 40, 75, 120)) * 1024
    child = scene.train(run, before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    code = child.wait()
    fault = "" if code == 1 else f"ended with {code}"
    if child.said.count("cannot be written") != 1:
        fault = fault or f"{child.said.count('cannot be written')} messages"
    directory = RunDirectory(run)
    if any(damage(directory.checkpoint(step)) for step in directory.steps()):
        fault = fault or "a torn checkpoint"
    return Attempt(fault or scene.finish(run), run.with_suffix(".said").read_text(errors="replace"))


DAMAGES = ("truncated", "emptied", "another type", "folder", "deleted")


def spoil(scene: Scene, number: int, draw: random.Random) -> Attempt:
    """One file of a finished run damaged: the report shows the rest; a resume names it, or ends as the whole run."""
    run, kind = scene.folder / f"damage-{number}", DAMAGES[number % len(DAMAGES)]
    shutil.copytree(scene.whole, run)
    older = {f"step-{step:06d}" for step in RunDirectory(run).steps()[:-1]}  # nothing goes on from them
    files = sorted(file for file in run.rglob("*") if file.is_file() and not older.intersection(file.parts))
    files = [file for file in files if "wandb" not in file.parts]
    chosen = draw.choice(files)
    damage_file(chosen, kind)
    said = run.with_suffix(".said")
    code = amsd(["report", str(run), "--html", str(run.with_suffix(".html"))], said).wait()
    fault = "" if code in (0, 2) else f"the report ended with {code}"
    child = scene.train(run)
    code = child.wait()
    name = chosen.relative_to(run)
    if code == 0:
        own_log = name.name == "metrics.jsonl"  # what the log itself lost cannot be told again
        fault = fault or ("" if own_log else scene.difference(run))
    elif str(run) not in child.said and name.name not in child.said:
        fault = fault or f"ended with {code} and does not name {name}"
    return Attempt(f"{name} {kind}: {fault}" if fault else "", said.read_text(errors="replace"))
