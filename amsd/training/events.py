"""What a trainer tells the outside while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step: flat scalar names to values, such as `loss`, `reward/mean`, `seconds/rollout`."""

    step: int
    """Optimizer steps done, counted from 1."""
    values: Mapping[str, float]


class AnyCheckpoint(Protocol):
    """A checkpoint of a run, which may still be being written."""

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        ...

    @property
    def path(self) -> Path:
        """Its folder with everything in it; waits until it is complete.

        Raises:
            RunError: it cannot be written.
        """
        ...

    @property
    def weights_sha256(self) -> str:
        """Identity of the weights that will be evaluated; waits until it is known."""
        ...


@dataclass(frozen=True)
class CheckpointRecord:
    """A checkpoint that is complete on disk."""

    step: int
    path: Path
    weights_sha256: str


@dataclass(frozen=True)
class Notice:
    """Something a user must know: a fallback, a warning, an alarm."""

    kind: str
    """Short machine name, such as `reward-hacking` or `not-memoryless`."""
    text: str
    step: int = 0
    values: Mapping[str, float] = field(default_factory=dict)


class Listener(Protocol):
    """Anybody who wants to know how a run is going (main process only)."""

    def on_phase(self, phase: str, step: int) -> None:
        """A phase begins: `rollout`, `reward gradient`, `adjoint`, `loss`, `optimizer`, `checkpoint`, ..."""
        ...

    def on_step(self, record: StepRecord) -> None:
        """An optimizer step is done."""
        ...

    def on_checkpoint(self, record: CheckpointRecord) -> None:
        """A checkpoint is complete."""
        ...

    def on_notice(self, notice: Notice) -> None:
        """Something must be said."""
        ...
