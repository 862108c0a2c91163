"""Trials that compute the same: recognised by the key of their points."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amsd.sweep import attributes as names

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial


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
