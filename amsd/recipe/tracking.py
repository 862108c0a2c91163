"""The section `[tracking]` of a recipe."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from amsd.recipe.section import Section


def _names(value: Any) -> Any:
    """`"none"` is no name, and one name needs no list."""
    if isinstance(value, str):
        return () if value == "none" else (value,)
    return tuple(value) if isinstance(value, list) else value  # a validator hides that JSON has no tuples


class Tracking(Section):
    """Where values go besides `metrics.jsonl`, which is always written. Unset names come from the environment."""

    trackers: Annotated[tuple[str, ...], BeforeValidator(_names)] = ("wandb",)
    """One or several of "wandb", "tensorboard" (files under RUN/tensorboard) and "trackio", or "none"."""
    project: str | None = None
    """Unset: WANDB_PROJECT, else "amsd"."""
    entity: str | None = None
    """W&B user or team; unset: WANDB_ENTITY, else the key's own."""
    group: str | None = None
    """Unset: WANDB_RUN_GROUP."""
    name: str | None = None
    """Unset: WANDB_NAME, else the name of the run directory."""
    tags: tuple[str, ...] | None = None
    """Unset: WANDB_TAGS."""
    notes: str | None = None
    """Longer description of the run; unset: WANDB_NOTES."""
    job_type: str | None = None
    """Kind of the run within its group; unset: WANDB_JOB_TYPE."""
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """Mode of W&B. `auto` is WANDB_MODE where it is set, else online with a key and a network, else offline with one
    notice."""
