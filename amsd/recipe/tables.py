"""The tables of a recipe, whatever its method is: what a method's own table is asked about."""

from __future__ import annotations

from pydantic import Field, SerializeAsAny

from amsd.recipe.schema import (
    CodeFile,
    Evaluation,
    Guidance,
    Model,
    Optimizer,
    Prompts,
    RewardTerm,
    Schedule,
    Tracking,
    Training,
)
from amsd.recipe.section import Section


class Tables(Section):
    """Everything that determines one run; of the method only that it has a table (`Recipe` says which)."""

    model: Model = Model()
    schedule: Schedule = Schedule()
    guidance: Guidance = Guidance()
    method: SerializeAsAny[Section]
    """The table of the method that `method.name` names (`amsd.recipe.methods`)."""
    reward: tuple[RewardTerm, ...] = Field(min_length=1)
    prompts: Prompts = Prompts()
    optimizer: Optimizer = Optimizer()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    tracking: Tracking = Tracking()
    code: dict[str, CodeFile] = Field(default_factory=dict)
    """Where the Python files of `python:` scorers lie, by the name in the scorer's; filled in when a run is written."""
    origin: str | None = None
    """Run directory that this recipe was written for; filled in when a run is written."""
