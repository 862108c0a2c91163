"""A listener of a trainer for tests."""

from __future__ import annotations

from amsd.training.events import CheckpointRecord, Notice, StepRecord


class Values:
    """Keeps what is logged of each step."""

    def __init__(self) -> None:
        self.of_steps: list[dict[str, float]] = []

    def on_step(self, record: StepRecord) -> None:
        self.of_steps.append(dict(record.values))

    def on_phase(self, phase: str, step: int) -> None: ...

    def on_checkpoint(self, record: CheckpointRecord) -> None: ...

    def on_notice(self, notice: Notice) -> None: ...
