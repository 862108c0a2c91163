"""Evaluation of a policy: of every checkpoint while training, or of one checkpoint on its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from amsd.evaluation.alarm import TrainingSigns, reward_hacking
from amsd.evaluation.evaluator import Evaluator
from amsd.evaluation.result import EvaluationResult
from amsd.evaluation.watch import new_checkpoints
from amsd.experiment.results import compare_pictures, evaluator_of, write_results
from amsd.experiment.setup import Identified, build_accelerator, load_identified
from amsd.recipe import Recipe, load_recipe
from amsd.recipe.load import read_run
from amsd.run_directory import RunDirectory, resolve_checkpoint
from amsd.tracking import Tracker
from amsd.tracking.log import read_log, stopped
from amsd.tracking.progress import Report
from amsd.training import processes
from amsd.training.checkpoint import CheckpointScores, retire, weights_sha256
from amsd.training.events import AnyCheckpoint, Notice

Results = tuple[EvaluationResult, ...]
"""Of one set of weights, one per setting."""


class PolicyEvaluation:
    """Evaluates a policy and its base with one evaluator; the base only once."""

    def __init__(self, recipe: Recipe, identified: Identified, evaluator: Evaluator) -> None:
        self.recipe = recipe
        self._policy, self._base_weights = identified.policy, identified.base_weights
        self.evaluator = evaluator
        with self._policy.sampling(base=True) as pipeline:
            self.base: Results = tuple(evaluator.evaluate(pipeline, self._base_weights))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of its pictures."""
        return self._policy.family.size

    @property
    def device(self) -> torch.device:
        """Where the networks lie."""
        return self._policy.family.device

    def finetuned(self, weights: str, against: Sequence[EvaluationResult] | None = None) -> Results:
        """Results of the fine-tuned network, whose weights have the hash `weights`, compared with the base.

        `against` are results of another model to compare with.
        """
        with self._policy.sampling() as pipeline:
            identity = f"{self._base_weights}+{weights}"
            return tuple(self.evaluator.evaluate(pipeline, identity, against or self.base))

    def of_checkpoint(self, checkpoint: Path, against: Sequence[EvaluationResult] | None = None) -> Results:
        """Results of a checkpoint on disk, which is loaded into the policy."""
        self._policy.load(checkpoint)
        return self.finetuned(weights_sha256(checkpoint), against)


class CheckpointEvaluation:
    """What a trainer calls after every checkpoint: evaluates it, writes files and pictures, raises the alarm."""

    def __init__(self, evaluation: PolicyEvaluation, run: RunDirectory, tracker: Tracker) -> None:
        self._evaluation = evaluation
        self._recipe = evaluation.recipe
        self._run = run
        self._tracker = tracker
        self.latest: Results = ()
        """Of the newest checkpoint that was evaluated."""
        self._labels: dict[str, str] = {}
        if processes.rank() == 0:
            base = evaluation.base
            pictures = write_results(base, run.base_evaluation, run.base_samples)
            self._labels = dict(_changed(run, base))
            if self._labels:
                self._say_changed(base)
            self._track(0, base, pictures)

    def __call__(self, record: AnyCheckpoint) -> float | None:
        """Evaluate a checkpoint where the recipe wants it, also one that is being written; returns its score."""
        if not self._due(record.step):
            return None
        self.latest = results = self._evaluation.finetuned(record.weights_sha256)
        if processes.rank() == 0:
            pictures = write_results(results, record.path / "evaluation", record.path / "samples")
            self._track(record.step, results, pictures)
            trained = {term.name: term.weight for term in self._recipe.reward}
            notice = reward_hacking(results, trained, record.step, self._signs())
            if notice is not None:
                self._tracker.on_notice(notice)
            compare_pictures(self._evaluation.base, results, self._run.path)
        return results[0].metrics[self._recipe.best_metric].mean

    def _signs(self) -> TrainingSigns:
        return TrainingSigns.of_log(read_log(self._run.metrics).entries if self._run.metrics.is_file() else ())

    def _track(self, step: int, results: Sequence[EvaluationResult], pictures: Mapping[str, Path]) -> None:
        """Tell the trackers; settings whose conditions changed since the run began go by a name of their own."""
        renamed = [replace(result, name=self._labels.get(result.name, result.name)) for result in results]
        named = {self._labels.get(name, name): path for name, path in pictures.items()}
        self._tracker.on_evaluation(step, renamed, named)

    def _say_changed(self, base: Sequence[EvaluationResult]) -> None:
        """Announce it, and let `best` be chosen among results of the new conditions only."""
        if base[0].name in self._labels:
            CheckpointScores(self._run).drop_after(-1)
        settings = ", ".join(self._labels)
        text = (
            f"The evaluation of this run has changed since it began ({settings}: other prompts, samples, seed, scorers "
            "or libraries). Results from here on are a series of their own, and the best checkpoint is chosen among "
            "them."
        )
        self._tracker.on_notice(Notice("evaluation-changed", text))

    def _due(self, step: int) -> bool:
        every, training = self._recipe.evaluation.every, self._recipe.training
        if every == 0:
            return False
        return step == training.steps or (step // training.checkpoint_every) % every == 0


def _changed(run: RunDirectory, base: Sequence[EvaluationResult]) -> Iterator[tuple[str, str]]:
    """Settings whose conditions are not those of the run's first evaluation, with the name of the new series."""
    if not run.metrics.is_file():
        return
    first: dict[str, str] = {}
    for entry in read_log(run.metrics).entries:
        if entry.kind == "evaluation" and entry.key:
            first.setdefault(entry.name, entry.key)
    for result in base:
        if first.get(result.name, result.key) != result.key:
            yield result.name, result.stem


def evaluate_checkpoint(
    recipe: Recipe, checkpoint: Path | str, base: str | None = None, progress: Report | None = None
) -> Results:
    """Evaluate a checkpoint as in training: against the model it began from, or against another one called `base`.

    `checkpoint` is its folder, or a run's (its best one). One result per setting of the recipe; files and pictures are
    written into the checkpoint.

    Raises:
        UsageError: there is no such checkpoint, or the two models draw pictures of different sizes.
        RunError: a picture or a score is not finite.
    """
    checkpoint = resolve_checkpoint(checkpoint)
    evaluation = standalone(recipe, progress)
    against = evaluation.base
    if base is not None:
        from amsd.experiment.models import load_model

        model = load_model(base, recipe.model, evaluation.device)
        model.require_size(evaluation.size)
        against = tuple(model.evaluated(evaluation.evaluator))
    results = evaluation.of_checkpoint(checkpoint, against)
    if processes.rank() == 0:
        write_results(results, checkpoint / "evaluation", checkpoint / "samples")
        run = RunDirectory(checkpoint.absolute().parent.parent)
        if run.checkpoints == checkpoint.absolute().parent and run.used:  # not a checkpoint that was moved
            write_results(against, run.base_evaluation, run.base_samples)
    return results


def watch_run(folder: Path, recipe: str | None, assignments: Sequence[str]) -> Iterator[tuple[int, Results]]:
    """Evaluate the checkpoints of a running training as they appear.

    Ends when the last step's checkpoint is done, or when the run says that it failed or was interrupted. A run that was
    killed says nothing and may be resumed at any time: it is watched until the user stops.
    """
    run = RunDirectory(folder)
    resolved = load_recipe(recipe or run.recipe, assignments)
    trained = read_run(run.recipe)
    evaluation: PolicyEvaluation | None = None
    last = run.checkpoint(trained.training.steps)

    def evaluator() -> PolicyEvaluation:
        nonlocal evaluation
        if evaluation is None:
            evaluation = standalone(resolved)
            write_results(evaluation.base, run.base_evaluation, run.base_samples)
        return evaluation

    def wanted(checkpoint: Path) -> bool:
        names = [f"{result.stem}.json" for result in evaluator().base]
        return not all((checkpoint / "evaluation" / name).is_file() for name in names)

    def finished() -> bool:
        return (last / "manifest.json").is_file() or stopped(run.metrics)

    for checkpoint in new_checkpoints(run, finished=finished, wanted=wanted):
        step = int(checkpoint.name.removeprefix("step-"))
        try:
            results = evaluator().of_checkpoint(checkpoint)
            write_results(results, checkpoint / "evaluation", checkpoint / "samples")
        except OSError:
            if (checkpoint / "manifest.json").is_file():
                raise
            continue  # the training deleted it meanwhile
        if not (checkpoint / "manifest.json").is_file():
            retire(run, step)  # deleted just before the results were written: they belong to what it left behind
        yield step, results


def standalone(recipe: Recipe, progress: Report | None = None) -> PolicyEvaluation:
    """Everything an evaluation outside of a training needs."""
    identified = load_identified(recipe, build_accelerator(recipe).device)
    return PolicyEvaluation(recipe, identified, evaluator_of(recipe, progress))
