"""What a sweep keeps in Optuna's storage, and the few steps that Optuna's public interface does not have.

Optuna's `Study` can ask for a trial and tell its end. It cannot set a waiting trial running without making a new one,
put a running trial back under its own number, or write to a trial that another process started. `TrialTable` does these
through the storage interface (`optuna.storages.BaseStorage`). What is not public is used in this file alone: a trial's
`_trial_id`, `storage` and `system_attrs`, and `get_storage`. Tested with Optuna 5.0.0.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

PLAN: Final = "amsd:plan"
"""Study: the resolved sweep and base recipe, so that a worker needs nothing but the storage."""
DIRECTORY: Final = "amsd:directory"
"""Study: absolute path of the sweep's folder."""
STOP: Final = "amsd:stop"
"""Study: why the sweep stopped by itself."""
OWNER: Final = "amsd:owner"
"""Trial: {token, worker, since, attempt, lost}: who alone may run it now, since when (seconds since 1970, UTC), and how
often it was started and lost."""
BEAT: Final = "amsd:beat"
"""Trial: changes for as long as its owner is alive."""
POINT: Final = "amsd:point"
"""Trial: {key, cfg_mode, cost, directory}: what it computes (equal keys mean equal runs) and where."""
RUNS: Final = "amsd:runs"
"""Trial: list of {seed, identity, directory, values, errors}; directories are relative to the sweep's folder."""
OUTCOME: Final = "amsd:outcome"
"""Trial: {constraints, error, copy_of, seconds}."""
WAITS_FOR: Final = "amsd:waits_for"
"""Trial: number of its running twin whose values it waits for."""
SURPLUS: Final = "amsd:surplus"
"""Trial: two workers took the last place of the budget at once, and this one stood back; it is no trial."""


#: On SQLite Optuna reads a trial's state and then writes it: two threads of one process could both start it.
_STARTING = threading.Lock()


@dataclass(frozen=True)
class TrialTable:
    """The trials of one study by id, as they are in the storage at this moment."""

    study: Study
    storage: BaseStorage
    study_id: int

    @classmethod
    def of(cls, study: Study, storage: BaseStorage) -> TrialTable:
        """The table of an open study."""
        return cls(study, storage, storage.get_study_id_from_name(study.study_name))

    @staticmethod
    def id_of(trial: Trial | FrozenTrial) -> int:
        """The storage's own number of a trial; unlike `trial.number` it is unique over all studies."""
        return trial._trial_id

    def get(self, trial_id: int) -> FrozenTrial:
        """The trial as it is now (the attributes of a `Trial` are as old as its claim)."""
        return self.storage.get_trial(trial_id)

    def open(self, trial_id: int) -> Trial:
        """A running trial, to suggest values and to report."""
        from optuna.trial import Trial

        return Trial(self.study, trial_id)

    def waiting(self) -> list[FrozenTrial]:
        """Trials in the queue, by number."""
        from optuna.trial import TrialState

        return self.storage.get_all_trials(self.study_id, deepcopy=False, states=(TrialState.WAITING,))

    def running(self) -> list[FrozenTrial]:
        """Trials that somebody runs, or was running when it died."""
        from optuna.trial import TrialState

        return self.storage.get_all_trials(self.study_id, deepcopy=False, states=(TrialState.RUNNING,))

    def count(self, *states: str) -> int:
        """How many trials are in one of these states (`"WAITING"`, ...); of all states if none is named."""
        from optuna.trial import TrialState

        return self.storage.get_n_trials(self.study_id, tuple(TrialState[state] for state in states) or None)

    def start(self, trial_id: int) -> bool:
        """Set a waiting trial running; True for exactly one of those who try."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        with _STARTING:
            try:
                return self.storage.set_trial_state_values(trial_id, TrialState.RUNNING)
            except UpdateFinishedTrialError:
                return False

    def ask(self) -> Trial:
        """A new running trial, or the first waiting one if there is one by now."""
        with _STARTING:
            return self.study.ask()

    def put_back(self, trial_id: int) -> None:
        """Set a running trial waiting: it keeps its number, values and attributes.

        Raises:
            UpdateFinishedTrialError: it has ended.
        """
        from optuna.trial import TrialState

        self.storage.set_trial_state_values(trial_id, TrialState.WAITING)

    def fail(self, trial_id: int) -> None:
        """End a running trial without values; errors as `put_back`."""
        from optuna.trial import TrialState

        self.storage.set_trial_state_values(trial_id, TrialState.FAIL)

    def note(self, trial_id: int, name: str, value: Any) -> None:
        """Write a user attribute of any unfinished trial; errors as `put_back`."""
        self.storage.set_trial_user_attr(trial_id, name, value)


def cached(storage: BaseStorage) -> BaseStorage:
    """A database whose finished trials are read once; Optuna would put this around it, but outside of our patience."""
    from optuna.storages import get_storage

    return get_storage(storage)


def queued_params(trial: FrozenTrial) -> dict[str, Any]:
    """Values that a waiting trial was queued with: they are no parameters before it runs."""
    return dict(trial.system_attrs.get("fixed_params", {}))


def reported_steps(trial: Trial) -> set[int]:
    """Steps at which a trial has reported a value, in this attempt or an earlier one."""
    return set(trial.storage.get_trial(trial._trial_id).intermediate_values)
