"""`amsd train`: compose a run, fit it, and leave a run directory behind."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.console import Console

from amsd.diffusion.start_weights import require_start, start_from
from amsd.ends import AnnouncedEnd, Ends
from amsd.errors import UsageError
from amsd.evaluation.evaluator import Evaluator
from amsd.evaluation.result import EvaluationResult
from amsd.experiment.evaluate import CheckpointEvaluation, PolicyEvaluation
from amsd.experiment.setup import Identified, build_accelerator, build_problem, load_identified
from amsd.files import clear_unfinished, write_text
from amsd.lock import locked
from amsd.prompts import PromptSet, load_prompts
from amsd.prompts.load import truncated
from amsd.recipe import Recipe, dump_toml, identity
from amsd.recipe.identity import as_started, canonical
from amsd.recipe.load import read_run
from amsd.recipe.rules import warnings
from amsd.rewards.combination import WeightedReward
from amsd.rewards.table import require_known
from amsd.run_directory import RunDirectory
from amsd.tracking import FINISHED, RunInfo, Tracker, Trackers, standard
from amsd.tracking.backend import require_known_trackers
from amsd.training.checkpoint import newest_whole
from amsd.training.events import Notice
from amsd.training.methods import trainer_of
from amsd.training.problem import ControlProblem
from amsd.training.processes import gather

_LOG = logging.getLogger(__name__)

#: Environment variable that a sweep sets for its runs. A run that was given to another worker may still be ending, so
#: its successor waits for this many seconds.
MARK = "AMSD_SWEEP_RUN"
SWEEP_PATIENCE = 120.0


@dataclass(frozen=True)
class Finished:
    """What a run ended with."""

    run: RunDirectory
    results: tuple[EvaluationResult, ...]
    """Evaluation of the last checkpoint; empty without evaluation."""
    main: bool
    """Whether this is the process that speaks to the user."""


def train(recipe: Recipe, output: Path, resume: bool, ends: Ends | None = None) -> Finished:
    """Fit `recipe` in the run directory `output`; `ends` listens to signals already (unset: it begins here).

    Raises:
        UsageError: `output` holds a run and `resume` is false, or a run of another recipe or of other prompts.
        RunError: the run failed.
        AnnouncedEnd: a signal ended it; `resume` goes on.
    """
    if ends is None:
        with Ends() as ends:
            return _train(recipe, output, resume, ends)
    return _train(recipe, output, resume, ends)


def _train(recipe: Recipe, output: Path, resume: bool, ends: Ends) -> Finished:
    if resume and output.joinpath("recipe.toml").is_file():
        recipe = as_started(recipe, read_run(output / "recipe.toml"))
    accelerator = build_accelerator(recipe)
    set_seed(recipe.training.seed)  # rewards and libraries may draw from the process-wide generators
    run = RunDirectory(output)
    training = load_prompts(recipe.prompts.train, "train")
    held_out = load_prompts(recipe.prompts.evaluation, "evaluation")
    require_known([term.name for term in recipe.reward], recipe.evaluation)  # before anything is written
    require_known_trackers(recipe.tracking.trackers)
    require_start(recipe.model)
    with _only_writer(run, accelerator):
        if accelerator.is_main_process:
            clear_unfinished(run.path)
        nothing_to_resume = resume and not run.used
        _prepare(run, recipe, (training, held_out), resume, accelerator)
        newest = newest_whole(run) if resume else None
        resumed_from = None if newest is None else int(newest.name.removeprefix("step-"))
        info = RunInfo(recipe, run, identity(recipe), resumed_from)
        tracker: Tracker = standard(Console(), recipe.tracking) if accelerator.is_main_process else Trackers([])
        with _told(tracker, info, ends):
            identified = load_identified(recipe, accelerator.device)
            if newest is None:
                start_from(identified.policy, recipe.model)
            problem = build_problem(recipe, accelerator, identified.policy, training.texts)
            if nothing_to_resume:
                tracker.on_notice(Notice("resume", f"{run.path} holds no run to continue: a new one starts."))
            _remark(problem, recipe, training, held_out, tracker)
            return _fit(problem, identified, run, accelerator, tracker, training, held_out, ends)


@contextmanager
def _only_writer(run: RunDirectory, accelerator: Accelerator) -> Iterator[None]:
    """Hold the run's lock on the main process; every process hears if it is held elsewhere.

    Raises:
        UsageError: another process writes to the run.
    """
    with ExitStack() as stack:
        refusal = ""
        if accelerator.is_main_process:
            try:
                stack.enter_context(locked(run.path, SWEEP_PATIENCE if MARK in os.environ else 0.0))
            except UsageError as error:
                refusal = str(error)
        refusal = max(gather([refusal]))
        if refusal:
            raise UsageError(refusal)
        yield


@contextmanager
def _told(tracker: Tracker, info: RunInfo, ends: Ends) -> Iterator[None]:
    """Tell the tracker how the body begins and ends."""
    status, error = "failed", None
    tracker.on_start(info)
    try:
        yield
        status = FINISHED
    except KeyboardInterrupt as end:
        status, error = "interrupted", f"ended by {end.signal_name}" if isinstance(end, AnnouncedEnd) else None
        raise
    except Exception as failure:
        error = str(failure)
        raise
    finally:
        with ends.held():
            tracker.on_end(status, error)


def _fit(
    problem: ControlProblem,
    identified: Identified,
    run: RunDirectory,
    accelerator: Accelerator,
    tracker: Tracker,
    training: PromptSet,
    held_out: PromptSet,
    ends: Ends,
) -> Finished:
    recipe = problem.recipe
    evaluate = None
    if recipe.evaluation.every:
        assert isinstance(problem.reward, WeightedReward)
        trained = [term.reward for term in problem.reward.terms]
        evaluator = Evaluator.for_recipe(
            recipe, held_out.texts, trained, notify=tracker.on_notice,
            progress=lambda what, done, total: tracker.on_phase(f"evaluation, {what}: {done} of {total}", 0),
        )  # fmt: skip
        evaluate = CheckpointEvaluation(PolicyEvaluation(recipe, identified, evaluator), run, tracker)
    trainer = trainer_of(recipe.method)(
        problem, run, training.texts, accelerator, [tracker], evaluate, held_out.texts, ends
    )
    for notice in trainer.remarks():
        tracker.on_notice(notice)
    trainer.fit()
    results: Sequence[EvaluationResult] = evaluate.latest.results if evaluate and evaluate.latest else ()
    return Finished(run, tuple(results), accelerator.is_main_process)


def _prepare(
    run: RunDirectory, recipe: Recipe, prompts: tuple[PromptSet, PromptSet], resume: bool, accelerator: Accelerator
) -> None:
    """Check the run directory and write its recipe and the identity of its prompts (to train and to evaluate on).

    Raises:
        UsageError: see `train`.
    """
    if not resume:
        run.require_unused()
    if run.recipe.is_file():
        before = read_run(run.recipe)
        _require_same_horizon(run, before, recipe)
        # A longer run of the same recipe is a continuation; anything else would mix two experiments.
        same_length = before.training.model_copy(update={"steps": recipe.training.steps})
        continued = before.model_copy(update={"training": same_length})
        if identity(continued) != identity(recipe):
            raise UsageError(
                f"{run.path}: holds a run of another recipe ({', '.join(_changes(continued, recipe))}); "
                "only training.steps and keys that do not change results may differ on --resume."
            )
    identities = dict(zip(("training", "evaluation"), map(_identity, prompts), strict=True))
    if run.prompts.is_file():
        _require_same_prompts(run, _recorded_prompts(run), identities)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_text(run.recipe, dump_toml(recipe))
        write_text(run.prompts, json.dumps(identities, indent=2) + "\n")
    accelerator.wait_for_everyone()


def _recorded_prompts(run: RunDirectory) -> dict[str, dict[str, Any]]:
    """What the run's prompts were when it began; nothing, with a warning, where the file is damaged."""
    try:
        found = json.loads(run.prompts.read_bytes())
        return {role: {"sha256": str(found[role]["sha256"]), "prompts": found[role]["prompts"]} for role in found}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        _LOG.warning("%s is damaged (%r): whether the prompts are still the same is not checked", run.prompts, error)
        return {}


def _require_same_horizon(run: RunDirectory, before: Recipe, recipe: Recipe) -> None:
    """A rate that falls towards the last step depends on how many there are: another length is another run.

    Raises:
        UsageError: such a schedule, and another number of steps.
    """
    schedule, old, new = recipe.optimizer.schedule, before.training.steps, recipe.training.steps
    if schedule in ("linear", "cosine") and old != new:
        raise UsageError(
            f"{run.path}: optimizer.schedule = {schedule!r} ends with the last step, so the run cannot go on with "
            f"training.steps = {new} after it was started with {old}. Resume with {old}, or choose another --output."
        )


def _changes(before: Recipe, after: Recipe) -> Iterator[str]:
    """Keys that determine the weights and differ, as `key: before -> after`."""
    old, new = _leaves(canonical(before)), _leaves(canonical(after))
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key):
            yield f"{key}: {old.get(key, 'unset')} -> {new.get(key, 'unset')}"


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= _leaves(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _identity(prompts: PromptSet) -> dict[str, Any]:
    return {"source": prompts.source, "prompts": len(prompts), "sha256": prompts.identity}


def _require_same_prompts(run: RunDirectory, before: dict[str, dict[str, Any]], now: dict[str, dict[str, Any]]) -> None:
    for role, found in now.items():
        if role in before and before[role]["sha256"] != found["sha256"]:
            raise UsageError(
                f"{run.path}: the {role} prompts of {found['source']} are not those that the run was started with "
                f"({before[role]['prompts']} prompts with sha256 {before[role]['sha256'][:12]}, now {found['prompts']} "
                f"with {found['sha256'][:12]}). Bring the old prompts back, or choose another --output."
            )


def _remark(
    problem: ControlProblem, recipe: Recipe, training: PromptSet, held_out: PromptSet, tracker: Tracker
) -> None:
    """Tell what a user should know before the first step."""
    for warning in warnings(recipe):
        tracker.on_notice(Notice("recipe", str(warning)))
    for prompts in (training, held_out):
        for remark in prompts.remarks:
            tracker.on_notice(Notice("prompts", remark))
    common = set(training.texts) & set(held_out.texts)
    if common:
        some = "1 evaluation prompt is" if len(common) == 1 else f"{len(common)} evaluation prompts are"
        tracker.on_notice(Notice("prompts", f"{some} trained on too."))
    cut = truncated(training.texts, problem.policy.pipeline.tokenizer)
    if cut:
        tracker.on_notice(Notice("truncated", f"{cut} training prompts are longer than the text encoder reads."))
    assert isinstance(problem.reward, WeightedReward)
    for name, count in problem.reward.truncated(training.texts).items():
        if count:
            tracker.on_notice(Notice("truncated", f"{count} training prompts are longer than {name} reads."))
