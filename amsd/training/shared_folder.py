"""What the processes of a run must share: one run directory, seen by all of them, on every node."""

from __future__ import annotations

import socket
import time
import uuid

from amsd.errors import UsageError, option
from amsd.run_directory import RunDirectory
from amsd.training.processes import gather, rank, world_size

_PATIENCE = 10.0
"""Seconds that a network's file system may take to show a new file on another node."""
_PAUSE = 0.1


def require_shared(run: RunDirectory, patience: float = _PATIENCE) -> None:
    """Check that every process sees the run directory of the main process, or none where that has none yet.

    Each process writes its part of a checkpoint there and reads all of it back. A folder of the same name on the disk
    of another node would show at the first checkpoint only, or at a resume, where processes would begin at different
    steps.

    Raises:
        UsageError: on every process, if one of them sees another directory; it is named with its machine.
    """
    if world_size() == 1:
        return
    exists, token = gather([(run.path.is_dir(), uuid.uuid4().hex)])[0]
    mark = run.path / f".shared-{token}"
    if exists and rank() == 0:
        mark.touch()
    gather([None])  # now it is there
    end = time.monotonic() + patience
    while exists and not mark.exists() and time.monotonic() < end:
        time.sleep(_PAUSE)
    alike = mark.exists() if exists else not run.path.is_dir()
    others = [name for name in gather(["" if alike else f"process {rank()} on {socket.gethostname()}"]) if name]
    if exists and rank() == 0:
        mark.unlink()
    if others:
        raise UsageError(
            f"{run.path}: {', '.join(others)} does not see the directory that process 0 sees. All processes of a run "
            f"write to one directory: give {option('output')} a path on a file system that every node shares. The "
            "caches of the hub and of evaluations need not be shared."
        )
