"""One worker: takes trials from the queue, runs them, and hands back what it cannot finish."""

from __future__ import annotations

import logging
import os
import re
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from amsd.errors import AmsdError, RunError
from amsd.recipe import identity
from amsd.sweep import optuna_access as names
from amsd.sweep.claims import Claim, Liveness, Twins
from amsd.sweep.jobs import Stop, TrialExecutor
from amsd.sweep.results import seconds_spent
from amsd.sweep.search import suggest
from amsd.sweep.study import StudyHandle, counted
from amsd.sweep.trial import Outcome, Point, make_point, run_point

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerReport:
    """What one worker did."""

    trials: int
    """Trials it brought to an end."""
    interrupted: bool


class Worker:
    """Runs trials until the budget is used up, the sweep stops, or `stop` is set."""

    def __init__(
        self,
        handle: StudyHandle,
        executor: TrialExecutor,
        stop: Stop | None = None,
        name: str = "",
        alone: bool = False,
    ) -> None:
        """A worker with a name for the table; `alone`: no other process works on the study."""
        self._handle = handle
        self._trials = handle.trials
        self._executor = executor
        self._stop = stop or Stop()
        self._sweep = handle.plan.sweep
        self._liveness = Liveness(handle, name or f"{socket.gethostname()}:{os.getpid()}", alone)
        self._twins = Twins(handle.study)

    def run(self) -> WorkerReport:
        """Work until there is nothing left to do.

        Raises:
            RunError: the storage stayed away, or the first trials all failed alike.
        """
        done = 0
        with self._liveness:
            while not self._stop.requested:
                if reason := self._handle.stop_reason():
                    raise RunError(reason)
                claim = self._next()
                if claim is None:
                    if not self._others_run():
                        break
                    # A trial of another worker may yet come back into the queue.
                    self._stop.wait(self._sweep.execution.poll_seconds)
                    continue
                done += self._try(claim)
        return WorkerReport(done, self._stop.requested)

    def _next(self) -> Claim | None:
        if not self._budget_left():
            return None
        claim = self._liveness.claim()
        if claim is not None or not self._may_add():
            return claim
        return self._added()

    def _may_add(self) -> bool:
        """Whether the search may make a further point of its own."""
        limit = self._sweep.budget.trials
        if self._sweep.sampler.name == "grid":
            return False
        if limit is None or self._trials.count() < limit:
            return True
        return len(counted(self._handle.study)) < limit

    def _added(self) -> Claim | None:
        """A new trial; None if others took the last places of the budget at the same moment."""
        from optuna.trial import TrialState

        trial = self._trials.ask()
        if not self._has_place(trial.number):
            trial.set_user_attr(names.SURPLUS, True)
            self._handle.study.tell(trial, state=TrialState.FAIL)
            return None
        return self._liveness.own(self._trials.id_of(trial), trial.number, trial.user_attrs.get(names.OWNER, {}))

    def _has_place(self, number: int) -> bool:
        """Whether fewer trials than the budget names came before this one."""
        limit = self._sweep.budget.trials
        if limit is None or number < limit:
            return True
        return sum(other.number < number for other in counted(self._handle.study)) < limit

    def _budget_left(self) -> bool:
        budget = self._sweep.budget
        if budget.seconds is None and budget.network_calls is None:
            return True
        trials = self._handle.study.get_trials(deepcopy=False)
        seconds = sum(seconds_spent(trial) or 0.0 for trial in trials)
        cost = sum(_cost(trial) for trial in trials)
        return seconds < (budget.seconds or float("inf")) and cost < (budget.network_calls or float("inf"))

    def _others_run(self) -> bool:
        return self._trials.count("RUNNING", *(["WAITING"] if self._budget_left() else [])) > 0

    def _try(self, claim: Claim) -> int:
        """Run one claimed trial to an end; 1 if it ended, 0 if it went back into the queue."""
        trial = self._trials.open(claim.trial_id)
        started, earlier = time.monotonic(), trial.user_attrs.get(names.OUTCOME, {}).get("seconds", 0.0)
        try:
            params = suggest(self._sweep.search, trial)
            logger.info("Trial %d begins: %s.", claim.number, ", ".join(f"{key} = {params[key]}" for key in params))
            point = make_point(self._handle.plan, self._handle.directory, claim.number, params)
            outcome = self._outcome(trial, point)
        except AmsdError as error:
            if isinstance(error, RunError) and self._liveness.fenced:
                raise
            outcome = Outcome("failed", error=str(error))
        seconds = earlier + time.monotonic() - started
        try:
            return self._close(trial, claim, outcome, seconds)
        finally:
            self._liveness.drop()

    def _outcome(self, trial: Trial, point: Point) -> Outcome:
        if names.POINT not in trial.user_attrs:
            folder = self._handle.directory
            trial.set_user_attr(names.POINT, point.facts())
            runs = [
                {"seed": job.seed, "identity": identity(job.recipe), "directory": str(job.run.relative_to(folder))}
                for job in point.jobs
            ]
            trial.set_user_attr(names.RUNS, runs)
        twin = self._twins.wait_for(
            trial, point.key, self._sweep.execution.poll_seconds, self._released, self._stop.wait
        )
        if self._released():
            return Outcome("released")
        if twin is not None:
            return _copied(twin, trial)
        return run_point(trial, point, self._sweep, self._executor, self._stop, lambda: self._liveness.fenced)

    def _released(self) -> bool:
        return self._stop.requested or self._liveness.fenced

    def _close(self, trial: Trial, claim: Claim, outcome: Outcome, seconds: float) -> int:
        """Write how the trial ended, unless it was given to another worker in the meantime."""
        current = self._trials.get(claim.trial_id)
        owner = current.user_attrs.get(names.OWNER, {})
        if current.state.name != "RUNNING" or owner.get("token") != claim.token:
            logger.warning("Trial %d was given to another worker; its outcome here is dropped.", claim.number)
            return 0
        error = None if outcome.status in ("released", "lost") else outcome.error
        facts = {"seconds": round(seconds, 3), "error": error, "copy_of": outcome.copy_of}
        trial.set_user_attr(names.OUTCOME, {**facts, "constraints": dict(outcome.constraints)})
        lost = owner.get("lost", 0) + (outcome.status == "lost")
        if outcome.status == "released" or (outcome.status == "lost" and lost < self._sweep.execution.attempts):
            self._liveness.drop()
            trial.set_user_attr(names.OWNER, {**owner, "token": None, "lost": lost})
            self._trials.put_back(claim.trial_id)
            why = f" ({outcome.error})" if outcome.error else ""
            logger.info("Trial %d goes back into the queue; it will resume from its checkpoint%s.", claim.number, why)
            return 0
        self._tell(trial, outcome)
        return 1

    def _tell(self, trial: Trial, outcome: Outcome) -> None:
        from optuna.trial import TrialState

        for constraint in self._sweep.constraint:
            if constraint.metric in outcome.constraints:
                violation = constraint.violation(outcome.constraints[constraint.metric])
                trial.set_constraint(constraint.metric, violation)
        study = self._handle.study
        match outcome.status:
            case "complete":
                study.tell(trial, list(outcome.values))
                labels = [objective.label for objective in self._sweep.objective]
                values = zip(labels, outcome.values, strict=True)
                logger.info(
                    "Trial %d complete: %s.", trial.number, ", ".join(f"{name} = {value:.4g}" for name, value in values)
                )
            case "pruned":
                study.tell(trial, state=TrialState.PRUNED)
                logger.info("Trial %d pruned.", trial.number)
            case _:
                logger.warning("Trial %d failed: %s", trial.number, last_line(outcome.error))
                study.tell(trial, state=TrialState.FAIL)
                self._stop_if_all_fail_alike()

    def _stop_if_all_fail_alike(self) -> None:
        """The first n trials failed, all for the same reason: the rest would too."""
        limit = self._sweep.execution.stop_after_failures
        finished = [trial for trial in counted(self._handle.study) if trial.state.is_finished()]
        errors = [trial.user_attrs.get(names.OUTCOME, {}).get("error") for trial in finished]
        if len(finished) < limit or any(trial.state.name != "FAIL" for trial in finished):
            return
        if len({_alike(error) for error in errors}) == 1:
            self._handle.stop(
                f"sweep {self._sweep.name} stopped: its first {len(finished)} trials all failed alike:\n{errors[-1]}\n"
                f"Logs: {self._handle.directory}/trials/*/seed-*/log.txt"
            )


def last_line(error: str | None) -> str:
    """The line of an error text that says what happened: the last that begins with `Error` or names an exception."""
    lines = [line.strip() for line in (error or "").strip().splitlines()]
    named = [line for line in lines if re.match(r"(Error\b|[A-Za-z_.]*(Error|Exception|Interrupt): )", line)]
    return (named or lines or ["no error text"])[-1]


def _alike(error: str | None) -> str:
    """An error without its numbers and paths."""
    return re.sub(r"/\S+|[0-9a-f]{8,}|\d+(\.\d+)?", "#", last_line(error))


def _copied(twin: FrozenTrial, trial: Trial) -> Outcome:
    source = twin.user_attrs.get(names.OUTCOME, {})
    number = source.get("copy_of") if source.get("copy_of") is not None else twin.number
    logger.info("Trial %d equals trial %d and takes over its values.", trial.number, number)
    trial.set_user_attr(names.RUNS, twin.user_attrs.get(names.RUNS, []))
    status = "complete" if twin.state.name == "COMPLETE" else "pruned"
    values: Sequence[float] = twin.values if status == "complete" else ()
    for step, value in twin.intermediate_values.items() if len(trial.study.directions) == 1 else ():
        trial.report(value, step)
    return Outcome(status, tuple(values), source.get("constraints", {}), copy_of=number)  # type: ignore[arg-type]


def _cost(trial: FrozenTrial) -> float:
    copied = trial.user_attrs.get(names.OUTCOME, {}).get("copy_of") is not None
    return 0.0 if copied else float(trial.user_attrs.get(names.POINT, {}).get("cost", 0.0))
