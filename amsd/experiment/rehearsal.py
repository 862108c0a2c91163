"""What a small model's run takes on this machine: a few steps and a few pictures are made and thrown away."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from amsd.diffusion.loading import EMBEDDED
from amsd.evaluation.evaluator import Evaluator
from amsd.experiment.setup import build_accelerator, build_problem, load_identified
from amsd.prompts import load_prompts
from amsd.recipe import BufferedSection, Recipe
from amsd.rewards.code import servers, targets
from amsd.rewards.combination import WeightedReward
from amsd.run_directory import RunDirectory
from amsd.training.clock import COLLECTING
from amsd.training.events import StepRecord
from amsd.training.methods import trainer_of
from amsd.training.problem import ControlProblem


@dataclass(frozen=True)
class Rehearsal:
    """Seconds and bytes on this machine."""

    collection: float
    """Seconds of one collection of trajectories."""
    update: float
    """Seconds of one optimizer step's loss and update."""
    picture: float
    """Seconds of one evaluated picture, its scores included; 0 without evaluation."""
    memory: int
    """Most bytes at once: of the device, or on the CPU of the whole process."""

    def training(self, recipe: Recipe) -> float:
        """Seconds of all optimizer steps, with as many collections as the passes of a buffer ask for."""
        method, steps, batch = recipe.method, recipe.training.steps, recipe.optimizer.prompts_per_step
        size = method.buffer.trajectories(batch) if isinstance(method, BufferedSection) else batch
        return steps * self.update + -(-steps // (method.passes * size // batch)) * self.collection

    def evaluation(self, recipe: Recipe, images: int) -> float:
        """Seconds of the evaluations, of `images` each, of the base model and of every checkpoint that has one."""
        training, every = recipe.training, recipe.evaluation.every
        if not every:
            return 0.0
        checkpoints = -(-training.steps // training.checkpoint_every)
        return (1 + -(-checkpoints // every)) * images * self.picture

    def time(self, recipe: Recipe, images: int) -> str:
        """What a plan says of the time."""
        steps, training = recipe.training.steps, self.training(recipe)
        text = f"{duration(training / steps)} per step, {duration(training)} for {steps} steps"
        if recipe.evaluation.every:
            text += f", {duration(self.evaluation(recipe, images))} for evaluations"
        return text + ": measured on this machine by a few steps and pictures"

    def most(self, trained: float) -> str:
        """What a plan says of the memory; `trained` are the bytes that it computes."""
        return (
            f"{self.memory / 2**30:.2f} GiB at most, measured on this machine; {trained / 2**30:.2f} GiB of that for "
            "weights, gradients and optimizer"
        )


def can_try(recipe: Recipe, processes: int) -> bool:
    """Whether a rehearsal takes seconds and runs nothing of the user's: an embedded model and shipped rewards."""
    own = bool(targets(recipe)) or bool(servers(recipe))
    return recipe.model.pretrained.startswith(EMBEDDED) and processes == 1 and not own


def rehearse(recipe: Recipe) -> Rehearsal:
    """Make the first steps of a run and part of an evaluation; nothing of them is kept.

    The first step warms up and is not counted.
    """
    accelerator = build_accelerator(recipe)
    texts = load_prompts(recipe.prompts.train, "train", recipe.prompts.column).texts
    identified = load_identified(recipe, accelerator.device)
    problem = build_problem(recipe, accelerator, identified.policy, texts)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(recipe.method)(problem, RunDirectory(Path(folder) / "run"), texts, accelerator)
        trainer.train_step(1)
        counted = []
        for step in (2, 3):
            trainer.source.feedback(-1.0)  # nothing is enough: a buffer is collected anew
            counted.append(trainer.train_step(step))
        picture = _picture(problem, Path(folder)) if recipe.evaluation.every else 0.0
    collection = min(_seconds(record, COLLECTING) for record in counted)
    update = min(_seconds(record, ("loss", "optimizer")) for record in counted)
    return Rehearsal(collection, update, picture, _peak(accelerator.device))


def _seconds(record: StepRecord, phases: Sequence[str]) -> float:
    return sum(record.values[f"seconds/{phase.replace(' ', '_')}"] for phase in phases)


def _picture(problem: ControlProblem, cache: Path) -> float:
    """Seconds of a picture in an evaluation of the first prompts: at least one batch, and as many as distances need."""
    recipe, assumed = problem.recipe, 64
    prompts = load_prompts(recipe.prompts.evaluation, "evaluation", recipe.prompts.column).texts
    batch = assumed if recipe.evaluation.batch_size == "auto" else recipe.evaluation.batch_size
    count = min(len(prompts), max(3, -(-batch // recipe.evaluation.samples_per_prompt)))
    short = recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"prompts": count})})
    assert isinstance(problem.reward, WeightedReward)
    trained = [term.reward for term in problem.reward.terms]
    evaluator = Evaluator.for_recipe(short, prompts, trained, cache=cache, notify=lambda notice: None)
    with problem.policy.sampling() as pipeline:
        start = time.perf_counter()
        results = evaluator.evaluate(pipeline, "rehearsal")
        seconds = time.perf_counter() - start
    return seconds / (len(results) * count * recipe.evaluation.samples_per_prompt)


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def plain(value: float) -> str:
    """Three digits, and of a large number all before the point."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Two digits are all that an estimate deserves."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{float(f'{seconds / size:.2g}'):g} {unit}"
    return f"{float(f'{seconds:.2g}'):g} s"
