"""What a run is called in W&B: the keys that the recipe sets, else the WANDB_* variables of the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass

from amsd.recipe import Tracking

PROJECT = "amsd"
"""Where neither names a project."""


@dataclass(frozen=True)
class Names:
    """Resolved; None is W&B's own default."""

    project: str
    entity: str | None
    group: str | None
    name: str | None
    tags: tuple[str, ...]
    notes: str | None
    job_type: str | None

    @staticmethod
    def of(tracking: Tracking) -> Names:
        """Names of the runs of a recipe with this section."""

        def chosen(given: str | None, variable: str) -> str | None:
            return given if given is not None else os.environ.get(variable) or None

        return Names(
            project=chosen(tracking.project, "WANDB_PROJECT") or PROJECT,
            entity=chosen(tracking.entity, "WANDB_ENTITY"),
            group=chosen(tracking.group, "WANDB_RUN_GROUP"),
            name=chosen(tracking.name, "WANDB_NAME"),
            tags=own_tags(tracking),
            notes=chosen(tracking.notes, "WANDB_NOTES"),
            job_type=chosen(tracking.job_type, "WANDB_JOB_TYPE"),
        )


def own_tags(tracking: Tracking) -> tuple[str, ...]:
    """The recipe's tags, or those of WANDB_TAGS (comma-separated)."""
    if tracking.tags is not None:
        return tracking.tags
    return tuple(tag.strip() for tag in os.environ.get("WANDB_TAGS", "").split(",") if tag.strip())
