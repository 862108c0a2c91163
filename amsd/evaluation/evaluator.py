"""`Evaluator`: one set of weights in, one result per sampler setting out; only what is not known yet is computed."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amsd.diffusion.adapters import Adapter, adapter_for
from amsd.errors import RunError, UsageError
from amsd.evaluation import metrics, protocol
from amsd.evaluation.cache import Cache, default_folder
from amsd.evaluation.diversity import embedding_variance
from amsd.evaluation.identity import identity, library_versions
from amsd.evaluation.result import DIVERSITY, EvaluationResult, MetricResult, comparable
from amsd.evaluation.statistics import summarize
from amsd.recipe import EvaluationSetting, Recipe
from amsd.rewards.eight_bit import as_original
from amsd.rewards.protocol import Embedder, Reward
from amsd.rewards.table import resolve_embedder, resolve_reward
from amsd.training.events import Notice
from amsd.training.processes import gather, rank, shard

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Images:
    """This process's share of the pictures of one setting."""

    batches: list[list[protocol.Index]]
    pictures: list[Tensor]
    """One (B, 3, H, W), uint8, per batch."""
    prompts: int
    """Prompts that have pictures, from the start."""


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
        embedders: Sequence[Embedder] = (),
        *,
        cache: Path | None = None,
        notify: Callable[[Notice], None] | None = None,
    ) -> None:
        """`rewards` are trained and held-out scorers alike; `cache` is the folder of results (unset: the user's).

        Raises:
            UsageError: there are no prompts, or a diversity is asked of one sample per prompt.
        """
        if not prompts:
            raise UsageError("there are no evaluation prompts")
        if embedders and recipe.evaluation.samples_per_prompt < 2:
            raise UsageError("diversity is undefined for one sample per prompt: set evaluation.samples_per_prompt")
        self._recipe = recipe
        self._prompts = tuple(prompts[: recipe.evaluation.prompts])
        self._rewards = {reward.name: reward for reward in rewards}
        self._embedders = {embedder.name: embedder for embedder in embedders}
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
    ) -> Evaluator:
        """Load the scorers that the recipe names; `trained` are those the trainer has loaded already.

        Scorers with an 8-bit path take it: pictures are scored as the original code scores files on disk.

        Raises:
            UsageError: a name is unknown or its weights cannot be loaded.
        """
        known = {reward.name: reward for reward in trained}
        options = {**recipe.evaluation.options, **{term.name: term.options for term in recipe.reward}}
        names = dict.fromkeys([*(term.name for term in recipe.reward), *recipe.evaluation.metrics])
        rewards = [known[name] if name in known else resolve_reward(name, options.get(name)) for name in names]
        embedders = [resolve_embedder(name, options.get(name)) for name in recipe.evaluation.diversity]
        rewards = [as_original(reward) for reward in rewards]
        return cls(recipe, prompts, rewards, embedders, cache=cache, notify=notify)

    def evaluate(
        self, pipeline: Any, weights: str, base: Sequence[EvaluationResult] | None = None
    ) -> list[EvaluationResult]:
        """One result per setting of the recipe, compared with `base` where given.

        `pipeline` is on its device and holds the networks to be evaluated; its scheduler is the model's own. `weights`
        identifies everything in it: `pipeline_identity` of the base model, joined with the checkpoint's hash.

        Raises:
            RunError: a score is not finite; the prompt is named.
            UsageError: a setting cannot be sampled as its name says.
        """
        adapter = adapter_for(pipeline)
        known = {result.name: result for result in base or ()}
        return [
            self._compared(self._under(setting, adapter, weights), known.get(setting.name))
            for setting in self._recipe.evaluation_settings
        ]

    def _under(self, setting: EvaluationSetting, adapter: Adapter, weights: str) -> EvaluationResult:
        """The result of one setting: from the cache where it is known, computed where not."""
        sampler = protocol.sampler_for(setting, adapter.pipeline.scheduler, self._recipe.schedule)
        if sampler.fallback is not None:
            self._say("scheduler-fallback", sampler.fallback)
        settings = self._settings(sampler, weights)
        images_key = identity({"settings": settings, "prompts": self._prompts})
        keys = {name: identity({"images": images_key, "metric": [name, v]}) for name, v in self._versions().items()}
        values, pictures, missing, complete = self._known(images_key, keys)
        if missing or not complete:
            count = len(self._prompts) if missing else self._kept
            images = self._generate(adapter, sampler, count)
            device = next(adapter.pipeline.unet.parameters()).device
            for name in missing:
                values[name] = self._measure(name, images, device)
                if rank() == 0:
                    self._cache.keep_values(keys[name], values[name], {"metric": name, "settings": settings})
            if not complete:
                pictures = self._collect(images)
                if rank() == 0:
                    self._cache.keep_pictures(images_key, pictures)
        versions = self._versions()
        summaries = {name: summarize(versions[name], values[name]) for name in keys}
        kept = pictures if rank() == 0 else None
        return EvaluationResult(setting.name, settings, identity(sorted(keys.values())), self._prompts, summaries, kept)

    def _settings(self, sampler: protocol.Sampler, weights: str) -> dict[str, Any]:
        """Everything but the prompts that determines the images."""
        return {
            "name": sampler.setting.name,
            **sampler.setting.model_dump(),
            "sampler": sampler.description,
            "samples_per_prompt": self._recipe.evaluation.samples_per_prompt,
            "seed": self._recipe.evaluation.seed,
            "precision": self._recipe.model.precision,
            "weights": weights,
            "protocol": protocol.PROTOCOL_VERSION,
            "libraries": library_versions(),
        }

    def _versions(self) -> dict[str, str]:
        """Version of every metric by name, in the order of the result."""
        diversity = {DIVERSITY + name: embedder.version for name, embedder in self._embedders.items()}
        return {name: reward.version for name, reward in self._rewards.items()} | diversity

    @property
    def _kept(self) -> int:
        """Prompts whose samples are kept as pictures."""
        return min(self._recipe.evaluation.images, len(self._prompts))

    def _known(
        self, images_key: str, keys: dict[str, str]
    ) -> tuple[dict[str, tuple[float, ...]], Tensor | None, list[str], bool]:
        """What the main process finds in the cache: values, pictures, missing metrics, whether pictures are there."""
        values: dict[str, tuple[float, ...]] = {}
        pictures: Tensor | None = None
        if rank() == 0:
            found = {name: self._cache.values(key, len(self._prompts)) for name, key in keys.items()}
            values = {name: per_prompt for name, per_prompt in found.items() if per_prompt is not None}
            if self._kept:
                pictures = self._cache.pictures(images_key, self._kept, self._recipe.evaluation.samples_per_prompt)
        # All processes act on what the main one found: their own view of the files may be newer.
        values, complete = gather([(values, pictures is not None or not self._kept)])[0]
        return values, pictures, [name for name in keys if name not in values], complete

    def _generate(self, adapter: Adapter, sampler: protocol.Sampler, prompts: int) -> _Images:
        """This process's share of the pictures of the first `prompts` prompts."""
        evaluation = self._recipe.evaluation
        share = shard(protocol.batches(prompts, evaluation.samples_per_prompt, evaluation.batch_size))
        pictures = []
        with protocol.sampling(adapter.pipeline, sampler):
            encode = protocol.PromptEncoder(adapter, self._prompts)
            for batch in share:
                pictures.append(protocol.generate(adapter, sampler, encode(batch), batch, evaluation.seed))
        return _Images(share, pictures, prompts)

    def _measure(self, name: str, images: _Images, device: torch.device) -> tuple[float, ...]:
        """Per-prompt values of one metric over all processes' pictures."""
        samples = self._recipe.evaluation.samples_per_prompt
        if name.startswith(DIVERSITY):
            embedder = self._embedders[name.removeprefix(DIVERSITY)]
            with metrics.placed(embedder, device):
                local = [metrics.embed(embedder, pictures, device) for pictures in images.pictures]
            embeddings = torch.cat(gather(local)).unflatten(0, (images.prompts, samples))
            values = embedding_variance(embeddings).tolist()
        else:
            reward = self._rewards[name]
            with metrics.placed(reward, device, stay=name in {term.name for term in self._recipe.reward}):
                scores = [
                    metrics.score(reward, pictures, [self._prompts[prompt] for prompt, _ in batch], device)
                    for batch, pictures in zip(images.batches, images.pictures, strict=True)
                ]
            flat = [value for batch in gather(scores) for value in batch]
            values = [math.fsum(flat[p * samples : (p + 1) * samples]) / samples for p in range(images.prompts)]
        for prompt, value in zip(self._prompts, values, strict=True):
            if not math.isfinite(value):
                raise RunError(f"metric {name!r} is {value} for the prompt {prompt!r}")
        return tuple(values)

    def _collect(self, images: _Images) -> Tensor:
        """Pictures of the first prompts from all processes, (prompts, samples, 3, H, W)."""
        wanted = [
            pictures[torch.tensor([prompt < self._kept for prompt, _ in batch])]
            for batch, pictures in zip(images.batches, images.pictures, strict=True)
        ]
        pictures: Tensor = torch.cat(gather(wanted)).unflatten(0, (self._kept, -1))
        return pictures

    def _compared(self, result: EvaluationResult, base: EvaluationResult | None) -> EvaluationResult:
        """The result with its paired differences to the base model's."""
        if base is None:
            return result
        if not comparable(result, base):
            raise UsageError(
                f"{result.name}: the base model's result was made under other conditions; evaluate it again"
            )
        paired: dict[str, MetricResult] = {}
        for name, metric in result.metrics.items():
            reference = base.metrics.get(name)
            if reference is None or reference.version != metric.version:
                raise UsageError(
                    f"{result.name}: the base model has no result of {name!r} in version {metric.version!r}"
                )
            paired[name] = summarize(metric.version, metric.per_prompt, reference.per_prompt)
        return EvaluationResult(result.name, result.settings, result.identity, result.prompts, paired, result.pictures)

    def _damaged(self, file: Path, reason: str) -> None:
        self._say("damaged-cache", f"{file}: {reason}; computed again")

    def _say(self, kind: str, text: str) -> None:
        """Tell the main process's listeners, each text once."""
        if rank() == 0 and text not in self._said:
            self._said.add(text)
            self._notify(Notice(kind, text))
