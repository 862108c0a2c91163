"""The beginning of a run: whether the folder is free or holds this very run, and what is written into it first."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from amsd.errors import UsageError, option
from amsd.files import write_text
from amsd.prompts import PromptSet
from amsd.reading import parsed_object
from amsd.recipe import Recipe, dump_toml, from_dict, identity
from amsd.recipe.identity import canonical
from amsd.recipe.load import read_run
from amsd.recipe.paths import anchor
from amsd.rewards.code import recorded
from amsd.run_directory import RunDirectory

_LOG = logging.getLogger(__name__)


def as_written(recipe: Recipe, run: RunDirectory) -> Recipe:
    """The recipe as it is written into its run: paths are absolute, code is recorded, the run's own place is noted."""
    tree = recipe.model_dump(mode="json", exclude_none=True, exclude={"code", "origin"})
    code = {module: file.model_dump(mode="json") for module, file in recorded(recipe).items()}
    tree |= {"origin": str(run.path.absolute())} | ({"code": code} if code else {})
    anchor(tree, Path())
    return from_dict(tree, source=str(run.recipe))


def require_same(run: RunDirectory, recipe: Recipe, prompts: tuple[PromptSet, PromptSet]) -> None:
    """Check that what is to be continued is the run in this folder.

    Raises:
        UsageError: the folder holds a run of another recipe or of other prompts.
    """
    if run.recipe.is_file():
        before, now = read_run(run.recipe), as_written(recipe, run)
        _require_same_horizon(run, before, recipe)
        # A longer run of the same recipe is a continuation; anything else would mix two experiments.
        same_length = before.training.model_copy(update={"steps": recipe.training.steps})
        continued = before.model_copy(update={"training": same_length})
        if identity(continued) != identity(now):
            raise UsageError(
                f"{run.path}: holds a run of another recipe ({', '.join(_changes(continued, now))}); "
                "only training.steps and keys that do not change results may differ on a resume."
            )
    if run.prompts.is_file():
        _require_same_prompts(run, _recorded_prompts(run), _identities(prompts))


def write_start(run: RunDirectory, recipe: Recipe, prompts: tuple[PromptSet, PromptSet]) -> None:
    """Write the run's recipe and the identity of its prompts (to train and to evaluate on).

    Lines that a start before this one left, which failed before its first step, go.
    """
    if not run.used:
        run.metrics.unlink(missing_ok=True)
    write_text(run.recipe, dump_toml(as_written(recipe, run)))
    write_text(run.prompts, json.dumps(_identities(prompts), indent=2) + "\n")


def _require_same_horizon(run: RunDirectory, before: Recipe, recipe: Recipe) -> None:
    """A rate that falls towards the last step depends on how many there are: another length is another run.

    Raises:
        UsageError: such a schedule, and another number of steps.
    """
    schedule, old, new = recipe.optimizer.schedule, before.training.steps, recipe.training.steps
    if schedule in ("linear", "cosine") and old != new:
        raise UsageError(
            f"{run.path}: optimizer.schedule = {schedule!r} ends with the last step, so the run cannot go on with "
            f"training.steps = {new} after it was started with {old}. Resume with {old}, or choose another "
            f"{option('output')}."
        )


def _recorded_prompts(run: RunDirectory) -> dict[str, dict[str, Any]]:
    """What the run's prompts were when it began; nothing, with a warning, where the file is damaged."""
    try:
        found = parsed_object(run.prompts.read_bytes())
        return {role: {"sha256": str(found[role]["sha256"]), "prompts": found[role]["prompts"]} for role in found}
    except (OSError, ValueError, LookupError, TypeError) as error:
        _LOG.warning(
            "%s is damaged (%r), so amsd cannot check whether the prompts are still the same", run.prompts, error
        )
        return {}


def _identities(prompts: tuple[PromptSet, PromptSet]) -> dict[str, dict[str, Any]]:
    return dict(zip(("training", "evaluation"), map(_identity, prompts), strict=True))


def _changes(before: Recipe, after: Recipe) -> Iterator[str]:
    """Keys that determine the weights and differ, as `key: before -> after`."""
    old, new = _leaves(canonical(before)), _leaves(canonical(after))
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key):
            yield f"{key}: {old.get(key, 'unset')} -> {new.get(key, 'unset')}"


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= _leaves(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _identity(prompts: PromptSet) -> dict[str, Any]:
    return {"source": prompts.source, "prompts": len(prompts), "sha256": prompts.identity}


def _require_same_prompts(run: RunDirectory, before: dict[str, dict[str, Any]], now: dict[str, dict[str, Any]]) -> None:
    for role, found in now.items():
        if role in before and before[role]["sha256"] != found["sha256"]:
            raise UsageError(
                f"{run.path}: the {role} prompts of {found['source']} differ from those that the run was started with "
                f"({before[role]['prompts']} prompts with sha256 {before[role]['sha256'][:12]}, now {found['prompts']} "
                f"with {found['sha256'][:12]}). Bring the old prompts back, or choose another {option('output')}."
            )
