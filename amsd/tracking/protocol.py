"""What a tracker is: a listener of the trainer that also hears of the run's start, its evaluations and its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from amsd.places import published
from amsd.recipe import Recipe
from amsd.run_directory import RunDirectory
from amsd.training.events import CheckpointRecord, Notice, StepRecord

if TYPE_CHECKING:
    from amsd.evaluation.result import EvaluationResult

FINISHED = "finished"
"""Status of a run that reached its last step; any other status is a failure or an interruption."""


@dataclass(frozen=True)
class RunInfo:
    """The run that begins."""

    recipe: Recipe
    run: RunDirectory
    identity: str
    """Identity of the recipe (`amsd.recipe.identity`)."""
    resumed_from: int | None = None
    """Step of the checkpoint that the run continues from; None for a new run."""

    @property
    def config(self) -> dict[str, Any]:
        """The recipe and its identity as others may read them: it names no place on this machine."""
        return published(self.recipe) | {"identity": self.identity}


class Tracker:
    """Somebody who keeps or shows what a run does; this one does nothing. Called on the main process only.

    Calls come in this order: `on_start`, then any of the others, then `on_end`, which is called exactly once.
    """

    def on_start(self, info: RunInfo) -> None:
        """The run begins, or continues from a checkpoint."""

    def on_phase(self, phase: str, step: int) -> None:
        """A phase of step `step` begins."""

    def on_step(self, record: StepRecord) -> None:
        """An optimizer step is done."""

    def on_checkpoint(self, record: CheckpointRecord) -> None:
        """A checkpoint is complete on disk."""

    def on_evaluation(self, step: int, results: Sequence[EvaluationResult], pictures: Mapping[str, Path]) -> None:
        """The model after `step` optimizer steps was evaluated; step 0 is the base model.

        `pictures` gives the grid of samples (a PNG file) by name of the evaluation setting.
        """

    def on_notice(self, notice: Notice) -> None:
        """Something must be said."""

    def on_end(self, status: str, error: str | None) -> None:
        """The run is over: `status` is `finished`, `failed` or `interrupted`; `error` is the message of a failure."""


class Trackers(Tracker):
    """Several trackers as one: told in their order, ended in the reverse order, all of them even if one raises."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = tuple(trackers)

    @override
    def on_start(self, info: RunInfo) -> None:
        for tracker in self._trackers:
            tracker.on_start(info)

    @override
    def on_phase(self, phase: str, step: int) -> None:
        for tracker in self._trackers:
            tracker.on_phase(phase, step)

    @override
    def on_step(self, record: StepRecord) -> None:
        for tracker in self._trackers:
            tracker.on_step(record)

    @override
    def on_checkpoint(self, record: CheckpointRecord) -> None:
        for tracker in self._trackers:
            tracker.on_checkpoint(record)

    @override
    def on_evaluation(self, step: int, results: Sequence[EvaluationResult], pictures: Mapping[str, Path]) -> None:
        for tracker in self._trackers:
            tracker.on_evaluation(step, results, pictures)

    @override
    def on_notice(self, notice: Notice) -> None:
        for tracker in self._trackers:
            tracker.on_notice(notice)

    @override
    def on_end(self, status: str, error: str | None) -> None:
        with ExitStack() as stack:  # last tracker first: it may still have something to tell the others
            for tracker in self._trackers:
                stack.callback(tracker.on_end, status, error)
