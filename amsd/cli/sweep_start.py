"""What `amsd sweep run` checks and says before a trial starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from amsd.sweep.schema import SweepPlan


def require_backend(backend: str, launcher: str) -> None:
    """Check what runs the search and its trials.

    Raises:
        UsageError: there is no such backend or launcher, it is broken, or the two do not go together.
    """
    from amsd.errors import UsageError
    from amsd.sweep.launchers import SEAM

    SEAM.check([launcher], "--launcher: ")
    if backend not in ("optuna", "wandb") or (backend == "wandb" and launcher != "local"):
        raise UsageError(f"--backend {backend} --launcher {launcher}: backends are optuna and wandb (wandb on this "
                         "machine only)")  # fmt: skip


def say_memory(plan: SweepPlan, launcher: str) -> None:
    """Trials that run on the CPU of this machine need no word about a GPU's memory."""
    from amsd.sweep.checks import gpu_bytes, memory_lines

    if launcher != "local" or gpu_bytes():
        for line in memory_lines(plan):
            typer.echo(line, err=True)
