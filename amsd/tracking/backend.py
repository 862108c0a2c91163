"""Where a run's values go besides `metrics.jsonl`: one class of two methods per tracker, and the table of their names.

To add a tracker, write a class over `Backend` that takes (`RunInfo`, announce) and add a row here; a package of its own
registers it as an entry point of the group `amsd.trackers`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from importlib import import_module

from amsd.errors import UsageError
from amsd.plugins import plugins
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
GROUP = "amsd.trackers"


class Backend:
    """This one keeps nothing. It is built, called and closed on a thread of its own: it may be slow, and may raise."""

    def log(self, entry: Entry) -> None:
        """Keep the values of an entry."""

    def close(self, status: str, error: str | None) -> None:
        """The run is over (see `Tracker.on_end`): write what is left."""

    def interrupt(self) -> None:
        """Called on another thread when `log` or `close` takes too long: make it return if you can."""


Open = Callable[[RunInfo, Announce], Backend]


def names() -> list[str]:
    """Every name that `tracking.trackers` may hold."""
    return [*TABLE, *(name for name in plugins(GROUP) if name not in TABLE)]


def require_known_trackers(wanted: Sequence[str]) -> None:
    """Check names before a run begins.

    Raises:
        UsageError: a name is unknown.
    """
    known = names()
    for name in wanted:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise UsageError(f"tracking.trackers: {name!r} is not a tracker. Trackers: {', '.join(known)}.{hint}")


def resolve(name: str) -> Open:
    """The class of a tracker, imported.

    Raises:
        UsageError: the name is unknown.
        ImportError: its package is not installed.
    """
    require_known_trackers([name])
    if name in TABLE:
        module, _, attribute = TABLE[name].partition(":")
        found: Open = getattr(import_module(module), attribute)
        return found
    loaded: Open = plugins(GROUP)[name].load()
    return loaded
