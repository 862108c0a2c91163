"""The tables of a recipe, whatever its method is: what a method's own table is asked about."""

from __future__ import annotations

from pydantic import Field, SerializeAsAny

from amsd.recipe import schema
from amsd.recipe.section import Section
from amsd.recipe.tracking import Tracking


class Tables(Section):
    """Everything that determines one run; of the method only that it has a table (`Recipe` says which)."""

    model: schema.Model = schema.Model()
    schedule: schema.Schedule = schema.Schedule()
    guidance: schema.Guidance = schema.Guidance()
    method: SerializeAsAny[Section]
    """The table of the method that `method.name` names (`amsd.recipe.methods`)."""
    reward: tuple[schema.RewardTerm, ...] = Field(min_length=1)
    """What is maximized: one reward, or a weighted sum of several."""
    prompts: schema.Prompts = schema.Prompts()
    optimizer: schema.Optimizer = schema.Optimizer()
    training: schema.Training = schema.Training()
    evaluation: schema.Evaluation = schema.Evaluation()
    tracking: Tracking = Tracking()
    code: dict[str, schema.CodeFile] = Field(default_factory=dict)
    """Where the Python files of `python:` scorers lie, by the name in the scorer's; filled in when a run is written."""
    origin: str | None = None
    """Run directory that this recipe was written for; filled in when a run is written."""
