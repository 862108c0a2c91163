"""`Evaluator`: one set of weights in, one result per sampler setting out; only what is not known yet is computed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from amsd.diffusion.families import family_for
from amsd.diffusion.families.base import Family
from amsd.errors import UsageError
from amsd.evaluation import protocol
from amsd.evaluation.cache import Cache, default_folder
from amsd.evaluation.drawing import Painter, first_pictures
from amsd.evaluation.identity import identity
from amsd.evaluation.result import EvaluationResult, base_weights, is_distance, result_key
from amsd.evaluation.scorers import Scorers
from amsd.evaluation.statistics import summarize
from amsd.evaluation.wanted import Wanted, wanted_of
from amsd.prompts.cut import cut_by_scorers, cut_prompts
from amsd.recipe import EvaluationSetting, Recipe
from amsd.rewards.combination import is_groupwise
from amsd.rewards.eight_bit import as_original
from amsd.rewards.protocol import Embedder, Reward
from amsd.rewards.table import resolve_embedder, resolve_reward
from amsd.training.events import Notice
from amsd.training.processes import gather, rank

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Known:
    """What has been found or computed so far; the same on every process, except for the pictures."""

    values: dict[str, tuple[float, ...]]
    embeddings: dict[str, Tensor]
    """(P, S, D), float32 on the CPU, by embedder."""
    pictures: Tensor | None
    """Main process only."""
    has_pictures: bool
    """Whether the main process has them, or none are wanted."""


class Evaluator:
    """Evaluates weights under every setting of a recipe; scorers are loaded once, results are cached by identity.

    Every process of a run calls `evaluate` and gets the same results. Batches are the same whatever the number of
    processes, and values are gathered before they are aggregated, so the numbers are the same too.
    """

    def __init__(
        self,
        recipe: Recipe,
        prompts: Sequence[str],
        rewards: Sequence[Reward],
        diversity: Sequence[Embedder] = (),
        distance: Sequence[Embedder] = (),
        *,
        cache: Path | None = None,
        notify: Callable[[Notice], None] | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        """`rewards` are trained and held-out scorers alike; `cache` is the folder of results (unset: the user's).

        `progress` is told (what, done, total) after every batch of pictures, on the main process.

        Raises:
            UsageError: there are no prompts, or too few prompts or samples for a metric.
        """
        if not prompts:
            raise UsageError("there are no evaluation prompts: set prompts.evaluation")
        self._recipe = recipe
        self._prompts = tuple(prompts[: recipe.evaluation.prompts])
        self._samples = recipe.evaluation.samples_per_prompt
        trained = {term.name for term in recipe.reward}
        groupwise = [name for name, given in recipe.scorer_options.items() if is_groupwise(given)]
        self._scorers = Scorers(self._prompts, self._samples, rewards, diversity, distance, trained, groupwise)
        self._painter = Painter(recipe, self._prompts, progress or (lambda what, done, total: None))
        self._notify = notify or (lambda notice: _LOG.warning("%s", notice.text))
        self._cache = Cache(cache or default_folder(), self._damaged)
        self._said: set[str] = set()

    @classmethod
    def for_recipe(
        cls,
        recipe: Recipe,
        prompts: Sequence[str],
        trained: Sequence[Reward] = (),
        *,
        cache: Path | None = None,
        notify: Callable[[Notice], None] | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> Evaluator:
        """Load the scorers that the recipe names; `trained` are those the trainer has loaded already.

        Scorers with an 8-bit path take it: pictures are scored as the original code scores files on disk.

        Raises:
            UsageError: a name is unknown or its weights cannot be loaded.
        """
        evaluation = recipe.evaluation
        known = {reward.name: reward for reward in trained}
        options = recipe.scorer_options
        names = dict.fromkeys([*(term.name for term in recipe.reward), *evaluation.metrics])
        rewards = [
            known[name] if name in known else resolve_reward(name, options.get(name), recipe.code) for name in names
        ]
        used = dict.fromkeys([*evaluation.diversity, *evaluation.distance])
        embedders = {name: resolve_embedder(name, options.get(name)) for name in used}
        diversity, distance = ([embedders[n] for n in chosen] for chosen in (evaluation.diversity, evaluation.distance))
        rewards = [as_original(reward) for reward in rewards]
        return cls(recipe, prompts, rewards, diversity, distance, cache=cache, notify=notify, progress=progress)

    def evaluate(
        self, pipeline: Any, weights: str, base: Sequence[EvaluationResult] | None = None
    ) -> list[EvaluationResult]:
        """One result per setting of the recipe, compared with `base` where given.

        `pipeline` is on its device and holds the networks to be evaluated; its scheduler is the model's own. `weights`
        identifies everything in it: `pipeline_identity` of the base model, joined with the checkpoint's hash. `base`
        comes from this method, without a base of its own.

        Raises:
            RunError: a score or an embedding is not finite; the prompt is named.
            UsageError: a setting cannot be sampled as its name says, or `base` was made under other conditions.
        """
        family = family_for(pipeline, self._recipe.model)
        for text in self._cut(family):
            self._say("truncated", text)
        known = {result.name: result for result in base or ()}
        return [
            self._under(setting, family, weights, known.get(setting.name))
            for setting in self._recipe.evaluation_settings
        ]

    def _cut(self, family: Family) -> Iterator[str]:
        """Which prompts are not read to their end."""
        yield from cut_prompts(family, self._recipe, {"evaluation": self._prompts})
        yield from cut_by_scorers("evaluation", self._scorers.truncated(self._prompts))

    def _under(
        self, setting: EvaluationSetting, family: Family, weights: str, base: EvaluationResult | None
    ) -> EvaluationResult:
        """The result of one setting: from the cache where it is known, computed where not."""
        sampler = protocol.sampler_for(setting, family, self._recipe.schedule)
        if sampler.fallback is not None:
            self._say("scheduler-fallback", sampler.fallback)
        wanted = wanted_of(self._recipe, self._prompts, self._scorers, family, sampler, weights, base)
        found = self._completed(wanted, self._look_up(wanted), family, sampler)
        for name, embeddings in found.embeddings.items():
            shortage = self._scorers.shortage(name, embeddings)
            if shortage is not None:
                self._say("fid-left-out", shortage)
        summaries = {
            name: summarize(version, found.values[name], _reference(base, name, version))
            for name, version in wanted.versions.items()
        }
        compared_with = weights if base is None else base_weights(base)
        key = result_key(wanted.settings, self._prompts, self._scorers.all_versions, compared_with)
        return EvaluationResult(
            setting.name, wanted.settings, identity(sorted(wanted.metrics.values())), self._prompts, summaries,
            key, compared_with, found.pictures, found.embeddings,
        )  # fmt: skip

    @property
    def _kept(self) -> int:
        """Prompts whose samples are kept as pictures."""
        return min(self._recipe.evaluation.images, len(self._prompts))

    def _look_up(self, wanted: Wanted) -> _Known:
        """What the main process finds in the cache, told to all: their own view of the files may be newer."""
        values: dict[str, tuple[float, ...] | None] = {}
        embeddings: dict[str, Tensor | None] = {}
        pictures: Tensor | None = None
        if rank() == 0:
            count, samples = len(self._prompts), self._samples
            values = {name: self._cache.values(key, count) for name, key in wanted.metrics.items()}
            embeddings = {n: self._cache.embeddings(key, count, samples) for n, key in wanted.references.items()}
            if self._kept:
                pictures = self._cache.pictures(wanted.images, self._kept, samples)
        values, embeddings, complete = gather([(values, embeddings, pictures is not None or not self._kept)])[0]
        return _Known(
            {name: per_prompt for name, per_prompt in values.items() if per_prompt is not None},
            {name: each for name, each in embeddings.items() if each is not None},
            pictures,
            complete,
        )

    def _completed(self, wanted: Wanted, known: _Known, family: Family, sampler: protocol.Sampler) -> _Known:
        """Compute and keep what is not known yet."""
        missing = [name for name in wanted.metrics if name not in known.values]
        lost = [name for name in wanted.references if name not in known.embeddings]
        if missing or lost:
            images = self._painter.draw(family, sampler, len(self._prompts))
            device = family.device
            new = self._scorers.measure(missing, lost, images, device, wanted.base)
            known = replace(known, values=known.values | new.values, embeddings=known.embeddings | new.embeddings)
            if rank() == 0:
                for name in missing:
                    origin = {"metric": name, "settings": wanted.settings}
                    self._cache.keep_values(wanted.metrics[name], new.values[name], origin)
                for name in lost:
                    self._cache.keep_embeddings(wanted.references[name], new.embeddings[name])
        elif not known.has_pictures:
            images = self._painter.draw(family, sampler, self._kept)
        if not known.has_pictures:
            pictures = first_pictures(images, self._kept)
            if rank() == 0:
                self._cache.keep_pictures(wanted.images, pictures)
                known = replace(known, pictures=pictures)
        return known

    def _damaged(self, file: Path, reason: str) -> None:
        self._say("damaged-cache", f"{file}: {reason}")

    def _say(self, kind: str, text: str) -> None:
        """Tell the main process's listeners, each text once."""
        if rank() == 0 and text not in self._said:
            self._said.add(text)
            self._notify(Notice(kind, text))


def _reference(base: EvaluationResult | None, name: str, version: str) -> tuple[float, ...] | None:
    """The base model's per-prompt values that a metric is paired with; None without a base and for distances to it.

    Raises:
        UsageError: the base has no such metric, or in another version.
    """
    if base is None or is_distance(name):
        return None
    metric = base.metrics.get(name)
    if metric is None or metric.version != version:
        raise UsageError(
            f"{base.name}: the base model has no result of {name!r} in version {version!r}; "
            "evaluate the base model again"
        )
    return metric.per_prompt
