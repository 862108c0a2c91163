"""What a run reads, checked before anything is created: by training, plans, sweeps and `amsd recipe check` alike."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from amsd.errors import UsageError, option
from amsd.hub import PREFIX as HUB
from amsd.packages import require_bitsandbytes
from amsd.prompts import PromptSet, load_prompts
from amsd.prompts.hub import hub_name
from amsd.recipe import Recipe
from amsd.recipe.methods import METHODS, methods_with
from amsd.recipe.rules import warnings
from amsd.recipe.schema import only_path
from amsd.rewards.code import check_code, without_gradient
from amsd.rewards.table import require_known
from amsd.tracking.backend import TRACKERS, absent


@dataclass(frozen=True)
class Inputs:
    """The prompts of a recipe; None where they lie on the hub and nothing was to be downloaded."""

    training: PromptSet | None
    held_out: PromptSet | None

    def remarks(self, recipe: Recipe) -> Iterator[str]:
        """What a user should know of the prompts, one sentence each."""
        for prompts in (self.training, self.held_out):
            if prompts is not None:
                yield from prompts.remarks
        wanted = recipe.evaluation.prompts
        if self.held_out is not None and wanted is not None and len(self.held_out) < wanted:
            yield f"evaluation.prompts = {wanted}, but there are {len(self.held_out)} evaluation prompts."
        if self.training is not None and self.held_out is not None:
            common = len(set(self.training.texts) & set(self.held_out.texts))
            if common:
                some = "1 evaluation prompt is" if common == 1 else f"{common} evaluation prompts are"
                yield f"{some} in the training set too."


def remarks(recipe: Recipe, inputs: Inputs) -> list[str]:
    """What a check says of a recipe that can run; a run itself says it as notices."""
    return [*map(str, warnings(recipe)), *absent(recipe.tracking.trackers), *inputs.remarks(recipe)]


def check_inputs(recipe: Recipe, download: bool = True) -> Inputs:
    """Find everything that a recipe names on this machine: scorers, code, model, prompts. Nothing of it is run.

    Args:
        recipe: the recipe.
        download: whether prompts on the hub are downloaded; if not, they are left out.

    Raises:
        UsageError: something is unknown, absent or malformed; all of it is named.
    """
    problems: dict[str, None] = {}  # several checks may find the same

    def attempt(check: Callable[[], None]) -> None:
        try:
            check()
        except UsageError as error:
            problems[str(error)] = None

    found: dict[str, PromptSet] = {}

    def read(split: Literal["train", "evaluation"]) -> None:
        source = recipe.prompts.train if split == "train" else recipe.prompts.evaluation
        if not download and isinstance(source, str) and source.startswith(HUB):
            hub_name(source)
        else:
            found[split] = load_prompts(source, split, recipe.prompts.column)

    attempt(lambda: require_known([term.name for term in recipe.reward], recipe.evaluation))
    attempt(lambda: TRACKERS.check(recipe.tracking.trackers, "tracking.trackers: "))
    attempt(lambda: _require_trainer(recipe))
    attempt(lambda: check_code(recipe))
    attempt(lambda: _require_gradient(recipe))
    attempt(lambda: _require_groups(recipe))
    attempt(lambda: _require_model(recipe))
    attempt(lambda: _require_packages(recipe))
    attempt(lambda: read("train"))
    attempt(lambda: read("evaluation"))
    if problems:
        count = "" if len(problems) == 1 else f"{len(problems)} things are missing or wrong:\n  "
        raise UsageError(count + "\n  ".join(problems))
    return Inputs(found.get("train"), found.get("evaluation"))


def _require_trainer(recipe: Recipe) -> None:
    """The trainer of a package's method is looked at before a model is loaded; those of amsd are whole."""
    if recipe.method.name not in METHODS:
        from amsd.training.methods import trainer_of

        trainer_of(recipe.method)


def _require_gradient(recipe: Recipe) -> None:
    """A method that differentiates the reward needs rewards that can be; what only a function's code knows is tried
    when the run starts."""
    if not recipe.method.needs_reward_gradient:
        return
    for name in without_gradient(recipe):
        raise UsageError(
            f"method.name = {recipe.method.name!r} needs the gradient of the reward, and {name!r} has none. Set "
            f"method.name = {methods_with(lambda method: not method.needs_reward_gradient)}, which needs none, or "
            "name the score in evaluation.metrics to watch it only."
        )


def _require_groups(recipe: Recipe) -> None:
    if recipe.method.scores_groups:
        return
    for term in recipe.reward:
        if term.options.get("groupwise"):
            raise UsageError(
                f"reward {term.name!r} compares the samples of a group (groupwise = true), and method.name = "
                f"{recipe.method.name!r} has no groups. Set method.name = "
                f"{methods_with(lambda method: method.scores_groups)}."
            )


def _require_model(recipe: Recipe) -> None:
    for key in ("pretrained", "config", "start"):
        name = getattr(recipe.model, key, None)
        if name is None or not (only_path(name) or name.lower().endswith((".safetensors", ".ckpt"))):
            continue
        try:
            there = Path(name).expanduser().exists()
        except (OSError, RuntimeError):
            there = False
        if not there:
            raise UsageError(f"model.{key} = {name[:200]!r}: there is nothing at this path.")


def _require_packages(recipe: Recipe) -> None:
    if recipe.model.quantization is not None:
        require_bitsandbytes(f"model.quantization = {recipe.model.quantization!r}")
    if recipe.optimizer.name == "adamw-8bit":
        require_bitsandbytes(f"optimizer.name = {recipe.optimizer.name!r}")


def require_space(output: Path, checkpoint_bytes: float, recipe: Recipe) -> None:
    """Check that the checkpoints that a run keeps fit onto the disk.

    Raises:
        UsageError: they do not; what is needed and what is free is named.
    """
    training = recipe.training
    together = min(training.keep + 2, -(-training.steps // training.checkpoint_every))  # the best, and one half written
    needed = together * checkpoint_bytes
    existing = next(folder for folder in (output.absolute(), *output.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UsageError(
            f"{output}: {together} checkpoints of {checkpoint_bytes / 1e9:.3g} GB take {needed / 1e9:.3g} GB, but "
            f"{free / 1e9:.3g} GB are free. Free some space, lower training.keep, or choose another {option('output')}."
        )
