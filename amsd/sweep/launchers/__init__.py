"""Where the trials of a sweep run.

A launcher is one file here and one row of `LAUNCHERS`, or an entry point of the group `amsd.launchers`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from amsd.plugins import Seam

if TYPE_CHECKING:
    from amsd.sweep.schema import SweepPlan
    from amsd.sweep.study import StudyHandle

#: Name -> module and class.
LAUNCHERS: Final = {
    "local": "amsd.sweep.launchers.local:LocalLauncher",
    "slurm": "amsd.sweep.launchers.slurm:SlurmLauncher",
    "ray": "amsd.sweep.launchers.ray:RayLauncher",
}
#: Name -> module and function of the plan, the folder and the number of workers: what a dry run shows of a launcher.
PREVIEWS: Final = {"slurm": "amsd.sweep.launchers.slurm:script"}
SEAM = Seam("a launcher", "amsd.launchers", LAUNCHERS, members=("launch",))
#: Shows a sweep inside a block; what it yields is called whenever there may be something new to show.
View = Callable[["StudyHandle"], AbstractContextManager[Callable[[], None]]]


@dataclass(frozen=True)
class Launch:
    """What the user wants to run."""

    plan: SweepPlan
    folder: Path
    """The sweep's folder."""
    storage: str | None
    """Storage URL; None: the launcher's own default."""
    workers: int
    """How many trials run at once."""
    view: View
    """How the sweep is shown while it runs."""
    address: str | None = None
    """Of a Ray cluster: `auto` or HOST:PORT; None: one of this machine."""


@dataclass(frozen=True)
class Launched:
    """What became of it."""

    handle: StudyHandle
    interrupted: bool = False
    """Whether the user ended it; unfinished trials are queued again."""
    jobs: tuple[str, ...] = ()
    """Jobs that somebody else's queue now runs; empty if the sweep has run to its end."""


class Launcher(Protocol):
    """Creates the study and has its trials run."""

    def launch(self, request: Launch) -> Launched:
        """Run the sweep to its end, or hand it to a queue.

        Raises:
            UsageError: the sweep cannot be run here; nothing was started.
            RunError: it stopped by itself.
        """
        ...


def launch(name: str, request: Launch) -> Launched:
    """Have the launcher of this name run a sweep.

    Raises:
        UsageError: see `Launcher.launch`; or the launcher of a package is broken.
        RunError: see `Launcher.launch`.
    """
    kind = SEAM.load(name)
    try:
        launcher = kind()
    except TypeError as error:
        raise SEAM.refusal(name, f"cannot be called without arguments ({error})") from error
    done = launcher.launch(request)
    if not isinstance(done, Launched):
        raise SEAM.refusal(name, f"has not returned a Launched but {done!r:.200}")
    return done
