"""Who is alive: owners of running trials beat, and whoever falls silent loses its trial to the queue.

Optuna's own heartbeats need an SQL storage and `study.optimize`; these work on every storage. An observer judges a
beat only by whether it changes while it watches, so the clocks of different machines need not agree. A lost trial
goes back to the queue under its own number, so it keeps its directory and resumes from its last checkpoint.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from dataclasses import dataclass
from typing import Any

from amsd.sweep import optuna_access as names
from amsd.sweep.study import StudyHandle

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
