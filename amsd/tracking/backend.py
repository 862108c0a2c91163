"""Where a run's values go besides `metrics.jsonl`: one class of two methods per tracker, and the table of their names.

To add a tracker, write a class over `Backend` that takes (`RunInfo`, announce) and add a row here; a package of its own
registers it as an entry point of the group `amsd.trackers`.
"""

from __future__ import annotations

from collections.abc import Callable

from amsd.plugins import Seam
from amsd.tracking.entries import Entry
from amsd.tracking.protocol import RunInfo
from amsd.training.events import Notice

Announce = Callable[[Notice], None]

#: Class by name in `tracking.trackers`.
TABLE = {
    "wandb": "amsd.tracking.wandb:WandbBackend",
    "tensorboard": "amsd.tracking.tensorboard:TensorBoardBackend",
    "trackio": "amsd.tracking.trackio:TrackioBackend",
}
TRACKERS = Seam("a tracker", "amsd.trackers", TABLE)


class Backend:
    """This one keeps nothing. It is built, called and closed on a thread of its own: it may be slow, and may raise."""

    def log(self, entry: Entry) -> None:
        """Keep the values of an entry."""

    def close(self, status: str, error: str | None) -> None:
        """The run is over (see `Tracker.on_end`): write what is left."""

    def interrupt(self) -> None:
        """Called on another thread when `log` or `close` takes too long: make it return if you can."""


Open = Callable[[RunInfo, Announce], Backend]
