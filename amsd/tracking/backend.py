"""Where a run's values go besides `metrics.jsonl`: one class of two methods per tracker, and the table of their names.

To add a tracker, write a class over `Backend` that takes (`RunInfo`, announce) and add a row here; a package of its own
registers it as an entry point of the group `amsd.trackers`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec

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
TRACKERS = Seam("a tracker", "amsd.trackers", TABLE, members=("log", "close", "interrupt"))
#: Trackers whose package is an extra of amsd; tracker, package and extra have one name.
EXTRAS = frozenset({"tensorboard", "trackio"})


def install(name: str) -> str:
    """How to get the package of a tracker in `EXTRAS`. Trackio wants an older Pillow than the tested set has."""
    return f"Install it with `uv pip install 'amsd[{name}]'`, without -c constraints.txt."


def absent(trackers: Iterable[str]) -> Iterator[str]:
    """What a check says of trackers whose package is not installed; a run says it itself, and goes on."""
    for name in sorted(EXTRAS.intersection(trackers)):
        if find_spec(name) is None:
            yield f"tracking.trackers: the package {name} is not installed, so nothing would go there. {install(name)}"


class Backend:
    """This one keeps nothing. It is built, called and closed on a thread of its own: it may be slow, and may raise."""

    def log(self, entry: Entry) -> None:
        """Keep the values of an entry."""

    def close(self, status: str, error: str | None) -> None:
        """The run is over (see `Tracker.on_end`): write what is left."""

    def interrupt(self) -> None:
        """Called on another thread when `log` or `close` takes too long: make it return if you can."""


Open = Callable[[RunInfo, Announce], Backend]
