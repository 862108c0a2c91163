"""Who runs which trial: owners beat, whoever falls silent loses its trial to the queue, and equal trials run once.

Optuna's own heartbeats need an SQL storage and `study.optimize`; these work on every storage. An observer judges a
beat only by whether it changes while it watches, so the clocks of different machines need not agree. A lost trial
goes back to the queue under its own number, so it keeps its directory and resumes from its last checkpoint.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from amsd.sweep import optuna_access as names
from amsd.sweep.study import StudyHandle

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Claim:
    """The right to run one trial."""

    trial_id: int
    number: int
    token: str


class Liveness:
    """Beats for the trial that this worker runs, and watches the others. One thread, started by `with`."""

    def __init__(self, handle: StudyHandle, worker: str, alone: bool = False) -> None:
        """Of the worker `worker`; `alone`: nobody outside this process works on the study, so nobody needs a beat."""
        self._alone = alone
        self._trials = handle.trials
        self._worker = worker
        self._execution = handle.plan.sweep.execution
        self._seen: dict[int, tuple[Any, float]] = {}
        self._claim: Claim | None = None
        self._lost = threading.Event()
        self._end = threading.Event()
        self._watching = threading.Lock()
        self._thread = threading.Thread(target=self._live, name="amsd-liveness", daemon=True)
        self._failure: Exception | None = None

    def __enter__(self) -> Liveness:
        if not self._alone:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        if not self._alone:
            self._thread.join(timeout=5)

    def claim(self) -> Claim | None:
        """Take the first waiting trial, if there is one; exactly one worker gets it."""
        for trial in self._trials.waiting():
            trial_id = self._trials.id_of(trial)
            if self._trials.start(trial_id):
                return self.own(trial_id, trial.number, trial.user_attrs.get(names.OWNER, {}))
        return None

    def own(self, trial_id: int, number: int, earlier: dict[str, Any]) -> Claim:
        """Become the owner of a trial that this worker has just set running."""
        claim = Claim(trial_id, number, uuid.uuid4().hex[:12])
        owner = {
            "token": claim.token,
            "worker": self._worker,
            "since": time.time(),
            "attempt": earlier.get("attempt", 0) + 1,
            "lost": earlier.get("lost", 0),
        }
        self._trials.note(trial_id, names.OWNER, owner)
        self._lost.clear()
        self._claim = claim
        return claim

    def drop(self) -> None:
        """Stop beating: the trial has ended or was handed back."""
        self._claim = None

    @property
    def fenced(self) -> bool:
        """Whether this worker was taken for dead and its trial given to another: it must let go.

        Raises:
            AmsdError: the thread that beats has failed.
        """
        if self._failure is not None:
            raise self._failure
        return self._lost.is_set()

    def _live(self) -> None:
        from amsd.errors import AmsdError

        count = 0
        while not self._end.wait(self._execution.heartbeat_seconds):
            try:
                count += 1
                self._beat(count)
                self.recover()
            except AmsdError as error:
                self._failure = error
                return

    def _beat(self, count: int) -> None:
        from optuna.exceptions import UpdateFinishedTrialError

        claim = self._claim
        if claim is None:
            return
        owner = self._trials.get(claim.trial_id).user_attrs.get(names.OWNER, {})
        if owner.get("token") != claim.token:
            if self._claim is claim:
                self._lost.set()
            return
        try:
            self._trials.note(claim.trial_id, names.BEAT, f"{claim.token}:{count}")
        except UpdateFinishedTrialError:  # it has just ended
            return

    def recover(self) -> None:
        """Queue again (or fail, after too many attempts) every running trial whose beat has stood still too long."""
        with self._watching:
            running = self._trials.running()
            now = time.monotonic()
            claim = self._claim
            seen: dict[int, tuple[Any, float]] = {}
            for trial in running:
                trial_id = self._trials.id_of(trial)
                if claim is not None and trial_id == claim.trial_id:
                    continue
                owner = trial.user_attrs.get(names.OWNER, {})
                sign = (owner.get("token"), owner.get("attempt"), trial.user_attrs.get(names.BEAT))
                before = self._seen.get(trial_id)
                since = before[1] if before is not None and before[0] == sign else now
                if now - since > self._execution.lost_after_seconds:
                    self._requeue(trial_id, trial.number, owner)
                else:
                    seen[trial_id] = (sign, since)
            self._seen = seen

    def _requeue(self, trial_id: int, number: int, owner: dict[str, Any]) -> None:
        from optuna.exceptions import UpdateFinishedTrialError

        lost = owner.get("lost", 0) + 1
        who = owner.get("worker", "a worker")
        current = self._trials.get(trial_id)
        if current.state.name != "RUNNING" or current.user_attrs.get(names.OWNER, {}) != owner:
            return  # another observer was faster
        try:
            # Without its token, the lost owner lets go should it wake up.
            self._trials.note(trial_id, names.OWNER, {**owner, "token": None, "lost": lost})
            if lost >= self._execution.attempts:
                error = f"its worker was lost {lost} times, last {who}"
                self._trials.note(trial_id, names.OUTCOME, {"error": error})
                self._trials.fail(trial_id)
                logger.warning("Trial %d: %s; it is not tried again.", number, error)
            else:
                self._trials.put_back(trial_id)
                logger.warning("Trial %d: %s is silent; the trial is queued again.", number, who)
        except UpdateFinishedTrialError:
            logger.info("Trial %d ended just before amsd declared it lost.", number)


class Twins:
    """Finds the trials with a given key; looks at each trial only until its point is known, however many there are."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._places: dict[str, list[int]] = {}
        """Key -> places in the study's list of trials, which only grows."""
        self._unknown: list[int] = []
        self._seen = 0

    def of(self, number: int, key: str) -> list[FrozenTrial]:
        """The other trials with this key, as they are now."""
        trials = self._study.get_trials(deepcopy=False)
        places, self._unknown = [*self._unknown, *range(self._seen, len(trials))], []
        self._seen = len(trials)
        for place in places:
            point = trials[place].user_attrs.get(names.POINT)
            if point is not None:
                self._places.setdefault(point["key"], []).append(place)
            elif not trials[place].state.is_finished():  # one that failed before it had a point never gets one
                self._unknown.append(place)
        return [trials[place] for place in self._places.get(key, ()) if trials[place].number != number]

    def wait_for(
        self, trial: Trial, key: str, every: float, released: Callable[[], bool], wait: Callable[[float], None]
    ) -> FrozenTrial | None:
        """A finished trial with the same runs, if need be after waiting for it; looked for `every` so many seconds.

        Every worker first writes its key and then looks around, so of two twins at least one sees the other. It
        waits, unless the other is waiting too and has the higher number: exactly one of them runs.
        """
        from optuna.trial import TrialState

        waiting = False
        if trial.user_attrs.get(names.WAITS_FOR):  # left by a lost worker
            trial.set_user_attr(names.WAITS_FOR, False)
        while not released():
            others = self.of(trial.number, key)
            ended = [other for other in others if other.state in (TrialState.COMPLETE, TrialState.PRUNED)]
            if ended:
                return min(ended, key=lambda other: (other.state != TrialState.COMPLETE, other.number))
            running = [other for other in others if other.state == TrialState.RUNNING]
            if all(other.number > trial.number and other.user_attrs.get(names.WAITS_FOR) for other in running):
                break
            if not waiting:
                number = running[0].number
                logger.info("Trial %d equals trial %d, which is running; waiting for it.", trial.number, number)
                trial.set_user_attr(names.WAITS_FOR, True)
                waiting = True
            wait(every)
        if waiting:
            trial.set_user_attr(names.WAITS_FOR, False)
        return None
