"""`amsd train`: compose a run, fit it, and leave a run directory behind."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.console import Console

from amsd.diffusion.start_weights import require_start, start_from
from amsd.ends import AnnouncedEnd, Ends
from amsd.errors import UsageError, option
from amsd.evaluation.evaluator import Evaluator
from amsd.evaluation.result import EvaluationResult
from amsd.experiment.budget import Budgets
from amsd.experiment.evaluate import CheckpointEvaluation, PolicyEvaluation
from amsd.experiment.fsdp import divided, shares
from amsd.experiment.inputs import Inputs, check_inputs, require_space
from amsd.experiment.setup import Identified, build_accelerator, build_problem, load_identified, require_samplers
from amsd.experiment.start import require_same, write_start
from amsd.files import clear_unfinished
from amsd.lock import locked
from amsd.occupied import require_place
from amsd.prompts import PromptSet
from amsd.prompts.cut import cut_by_scorers, cut_prompts
from amsd.recipe import Recipe, identity
from amsd.recipe.identity import as_started
from amsd.recipe.load import read_run
from amsd.recipe.rules import warnings
from amsd.rewards.code import servers, targets
from amsd.rewards.combination import WeightedReward
from amsd.run_directory import RunDirectory
from amsd.tracking import FINISHED, RunInfo, Tracker, Trackers, standard
from amsd.tracking.log import lost_steps
from amsd.training.checkpoint import Start
from amsd.training.events import Notice
from amsd.training.methods import trainer_of
from amsd.training.persistence import checkpoint_bytes
from amsd.training.problem import ControlProblem
from amsd.training.processes import gather, obeying
from amsd.training.shared_folder import require_shared

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


def train(recipe: Recipe, output: Path | str, resume: bool = False, ends: Ends | None = None) -> Finished:
    """Fit `recipe` in the run directory `output`; `ends` listens to signals already (unset: it begins here).

    Raises:
        UsageError: `output` is an empty text, holds a run and `resume` is false, or holds a run of another recipe or of
            other prompts.
        RunError: the run failed.
        AnnouncedEnd: a signal ended it; `resume` goes on.
    """
    if ends is None:
        with Ends() as ends:
            return _train(recipe, RunDirectory(output), resume, ends)
    return _train(recipe, RunDirectory(output), resume, ends)


def _train(recipe: Recipe, run: RunDirectory, resume: bool, ends: Ends) -> Finished:
    require_place(run.path, option("output"), "run", within_sweep=MARK in os.environ)
    if not resume:
        run.require_unused()
    elif run.used and run.recipe.is_file():
        recipe = as_started(recipe, read_run(run.recipe))
    require_start(recipe.model)
    inputs = check_inputs(recipe)
    assert inputs.training is not None
    assert inputs.held_out is not None
    prompts = inputs.training, inputs.held_out
    if run.used:
        require_same(run, recipe, prompts)
    accelerator = build_accelerator(recipe)
    set_seed(recipe.training.seed)  # rewards and libraries may draw from the process-wide generators
    known = run.used
    require_shared(run)
    # A run that exists is held before anything of it is read; of a new one nothing is created yet.
    with _only_writer(run, accelerator) if known else nullcontext(), ExitStack() as stack:
        tracker: Tracker = (
            standard(Console(markup=False), recipe.tracking) if accelerator.is_main_process else Trackers([])
        )
        identified = load_identified(recipe, torch.device("cpu") if shares(recipe) else accelerator.device)
        start = Start.of(run) if resume else Start(None)
        if start.checkpoint is None:
            start_from(identified.policy, recipe.model)
        stack.enter_context(divided(identified.policy, recipe, accelerator))
        require_space(run.path, checkpoint_bytes(recipe, identified.policy.trained_parameters), recipe)
        require_samplers(identified.policy.family, recipe, recipe.evaluation.every > 0)
        problem = build_problem(recipe, accelerator, identified.policy, inputs.training.texts)
        evaluator = _evaluator(problem, inputs.held_out, tracker) if recipe.evaluation.every else None
        # Everything that a run needs is there: only now something is created.
        with nullcontext() if known else _only_writer(run, accelerator):
            if not resume:
                run.require_unused()
            if accelerator.is_main_process:
                clear_unfinished(run.path)
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                write_start(run, recipe, prompts)
            require_shared(run)
            lost = lost_steps(run.metrics, start.step) if start.step and accelerator.is_main_process else ""
            with _told(tracker, RunInfo(recipe, run, identity(recipe), start.step), ends):
                if lost:
                    tracker.on_notice(Notice("damaged-log", lost))
                _remark(problem, inputs, tracker)
                return _fit(problem, identified, evaluator, run, accelerator, tracker, prompts, ends, start)


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


def _evaluator(problem: ControlProblem, held_out: PromptSet, tracker: Tracker) -> Evaluator:
    assert isinstance(problem.reward, WeightedReward)
    trained = [term.reward for term in problem.reward.terms]
    return Evaluator.for_recipe(
        problem.recipe, held_out.texts, trained, notify=tracker.on_notice,
        progress=lambda what, done, total: tracker.on_phase(f"evaluation, {what}: {done} of {total}", 0),
    )  # fmt: skip


def _fit(
    problem: ControlProblem,
    identified: Identified,
    evaluator: Evaluator | None,
    run: RunDirectory,
    accelerator: Accelerator,
    tracker: Tracker,
    prompts: tuple[PromptSet, PromptSet],
    ends: Ends,
    start: Start,
) -> Finished:
    recipe = problem.recipe
    training, held_out = prompts
    evaluate = None
    if evaluator is not None:
        with obeying(ends):
            base = PolicyEvaluation(recipe, identified, evaluator)
        evaluate = CheckpointEvaluation(base, run, tracker)
    trainer = trainer_of(recipe.method)(
        problem, run, training.texts, accelerator, [tracker], evaluate, held_out.texts, ends,
        Budgets(problem, held_out.texts),
    )  # fmt: skip
    for notice in trainer.remarks():
        tracker.on_notice(notice)
    trainer.fit(start)
    return Finished(run, evaluate.latest if evaluate is not None else (), accelerator.is_main_process)


def _remark(problem: ControlProblem, inputs: Inputs, tracker: Tracker) -> None:
    """Tell what a user should know before the first step."""
    recipe = problem.recipe
    for target in targets(recipe):
        tracker.on_notice(Notice("code", f"{target.name} runs {target.locate(recipe.code)}."))
    for name in servers(recipe):
        tracker.on_notice(Notice("server", f"Pictures and prompts are sent to {name}."))
    for warning in warnings(recipe):
        tracker.on_notice(Notice("recipe", str(warning)))
    for remark in inputs.remarks(recipe):
        tracker.on_notice(Notice("prompts", remark))
    assert isinstance(problem.reward, WeightedReward)
    assert inputs.training is not None
    texts = inputs.training.texts  # those of evaluation are the evaluator's to judge
    cut = [
        *cut_prompts(problem.family, recipe, {"training": texts}),
        *cut_by_scorers("training", problem.reward.truncated(texts)),
    ]
    for remark in cut:
        tracker.on_notice(Notice("truncated", remark))
