"""The loaded scorers of an evaluation, and what the name of each metric means."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from amsd.errors import RunError, UsageError
from amsd.evaluation import distance, metrics
from amsd.evaluation.diversity import embedding_variance
from amsd.evaluation.result import DIVERSITY, FID, KID, EvaluationResult
from amsd.rewards.protocol import Embedder, Reward
from amsd.training.chunks import SCORING, ChunkSize, in_chunks
from amsd.training.processes import gather, interruptible, rank, shard


@dataclass(frozen=True)
class Images:
    """This process's share of the pictures of one setting."""

    batches: list[list[tuple[int, int]]]
    """(prompt index, sample index) of each picture."""
    pictures: list[Tensor]
    """One (B, 3, H, W), uint8, per batch."""
    prompts: int
    """Prompts that have pictures, from the start."""


@dataclass(frozen=True)
class Measured:
    """What was computed from the pictures of one setting."""

    values: dict[str, tuple[float, ...]]
    """Per-prompt values by metric."""
    embeddings: dict[str, Tensor]
    """(P, S, D), float32 on the CPU, by embedder."""


class Scorers:
    """Rewards and embedders, each loaded once and lent the device for as long as it is used.

    A metric is a reward under its own name, `diversity/<embedder>`, or a distance to the base model's images under the
    same setting: `kid/<embedder>`, and `fid/<embedder>` where there are more images than the embedding has dimensions
    (a covariance from fewer is singular).
    """

    def __init__(
        self,
        prompts: Sequence[str],
        samples: int,
        rewards: Sequence[Reward],
        diversity: Sequence[Embedder] = (),
        distances: Sequence[Embedder] = (),
        stay: Collection[str] = (),
        groupwise: Collection[str] = (),
    ) -> None:
        """`stay` names the rewards that remain on the device, because training uses them; `groupwise` those whose
        calls get all samples of one prompt.

        Raises:
            UsageError: diversity is asked of one sample per prompt, or a distance of too few prompts.
        """
        if diversity and samples < 2:
            raise UsageError("diversity is undefined for one sample per prompt: set evaluation.samples_per_prompt")
        if distances and len(prompts) < distance.MIN_PROMPTS:
            raise UsageError(
                f"evaluation.distance needs {distance.MIN_PROMPTS} evaluation prompts or more but there are "
                f"{len(prompts)}: its error is the spread over prompts"
            )
        self._prompts, self._samples, self._stay, self._groupwise = prompts, samples, stay, groupwise
        self._rewards = {reward.name: reward for reward in rewards}
        self._diversity = [embedder.name for embedder in diversity]
        self._distances = [embedder.name for embedder in distances]
        self._sizes: dict[str, ChunkSize] = {}
        self._embedders = {embedder.name: embedder for embedder in [*diversity, *distances]}

    @property
    def references(self) -> dict[str, str]:
        """Version by name of each embedder whose embeddings of the base model's images are kept."""
        return {name: self._embedders[name].version for name in self._distances}

    @property
    def all_versions(self) -> dict[str, str]:
        """Version by metric of every scorer and embedder, the same for the base model and for what is compared."""
        distances = {KID + name: self._embedders[name].version for name in self._distances}
        return {**self.versions(None), **distances}

    def truncated(self, prompts: Sequence[str]) -> dict[str, int]:
        """How many prompts each reward does not read to their end."""
        return {name: reward.truncated(prompts) for name, reward in self._rewards.items()}

    def versions(self, base: EvaluationResult | None) -> dict[str, str]:
        """Version of every metric by name, in the order of the result; distances exist against a base only."""
        found = {name: reward.version for name, reward in self._rewards.items()}
        found |= {DIVERSITY + name: self._embedders[name].version for name in self._diversity}
        for name in self._distances if base is not None else ():
            version = f"{distance.VERSION}-{self._embedders[name].version}"
            found[KID + name] = version
            if self.shortage(name, _reference(base, name)) is None:
                found[FID + name] = version
        return found

    def shortage(self, name: str, embeddings: Tensor) -> str | None:
        """Why there is no FID between sets of these embeddings (P, S, D); None if there is one."""
        images, dimensions = embeddings.shape[0] * embeddings.shape[1], embeddings.shape[2]
        if images > dimensions:
            return None
        return (
            f"{FID}{name} is left out: {images} images do not exceed the {dimensions} dimensions of the embedding, so "
            f"their covariance is singular. {KID}{name} has no such limit; for FID raise evaluation.prompts or "
            "evaluation.samples_per_prompt."
        )

    def measure(
        self,
        names: Collection[str],
        references: Collection[str],
        images: Images,
        device: torch.device,
        base: EvaluationResult | None,
    ) -> Measured:
        """Per-prompt values of the metrics `names`, and embeddings by the embedders `references`, over all processes.

        Raises:
            RunError: a value or an embedding is not finite; the prompt is named.
        """
        values = {name: self._scores(reward, images, device) for name, reward in self._rewards.items() if name in names}
        kept = {}
        for name, embedder in self._embedders.items():
            wanted = [prefix for prefix in (DIVERSITY, KID, FID) if prefix + name in names]
            if not wanted and name not in references:
                continue
            embeddings = self._embeddings(embedder, images, device)
            for prefix in wanted:
                if prefix == DIVERSITY:
                    values[prefix + name] = embedding_variance(embeddings).tolist()
                else:
                    values[prefix + name] = _distance(prefix, embeddings, _reference(base, name), device)
            if name in references:
                kept[name] = embeddings
        for name, per_prompt in values.items():
            for prompt, value in zip(self._prompts, per_prompt, strict=True):
                if not math.isfinite(value):
                    raise RunError(f"metric {name!r} is {value} for the prompt {prompt!r}")
        return Measured({name: tuple(per_prompt) for name, per_prompt in values.items()}, kept)

    def _scores(self, reward: Reward, images: Images, device: torch.device) -> list[float]:
        if reward.name in self._groupwise:
            return self._group_scores(reward, images, device)
        scores = []
        with metrics.placed(reward, device, stay=reward.name in self._stay), interruptible() as look:
            for batch, pictures in zip(images.batches, images.pictures, strict=True):
                look()
                scores.append(self._scored(reward, pictures, [self._prompts[prompt] for prompt, _ in batch], device))
        flat, samples = [value for batch in gather(scores) for value in batch], self._samples
        return [math.fsum(flat[p * samples : (p + 1) * samples]) / samples for p in range(images.prompts)]

    def _scored(self, reward: Reward, pictures: Tensor, prompts: Sequence[str], device: torch.device) -> list[float]:
        """Scores of a batch, in smaller parts where it does not fit into memory."""

        def part(rows: Sequence[int]) -> list[float]:
            chosen = slice(rows[0], rows[-1] + 1)
            return metrics.score(reward, pictures[chosen], prompts[chosen], device)

        parts = in_chunks(range(len(pictures)), self._size(reward.name, len(pictures)), part)
        return [value for values in parts for value in values]

    def _size(self, name: str, batch: int) -> ChunkSize:
        """How many pictures a scorer takes at once: whole batches as long as they fit."""
        return self._sizes.setdefault(name, ChunkSize(batch, batch, SCORING))

    def _group_scores(self, reward: Reward, images: Images, device: torch.device) -> list[float]:
        """Mean score of each prompt, where a call gets all its samples; processes take turns."""
        own: dict[int, dict[int, Tensor]] = {}
        for batch, pictures in zip(images.batches, images.pictures, strict=True):
            for (prompt, sample), picture in zip(batch, pictures, strict=True):
                own.setdefault(prompt, {})[sample] = picture
        found: dict[int, float] = {}
        with metrics.placed(reward, device, stay=reward.name in self._stay):
            for prompt in range(images.prompts):  # prompt by prompt: never all pictures in one process
                group = {k: v for part in gather([own.get(prompt, {})]) for k, v in part.items()}
                if prompt in shard(range(images.prompts)):
                    pictures = torch.stack([group[sample] for sample in range(self._samples)])
                    values = metrics.score(reward, pictures, [self._prompts[prompt]] * self._samples, device)
                    found[prompt] = math.fsum(values) / self._samples
        everything = {prompt: value for part in gather([found]) for prompt, value in part.items()}
        return [everything[prompt] for prompt in range(images.prompts)]

    def _embedded(self, embedder: Embedder, pictures: Tensor, device: torch.device) -> Tensor:
        """Embeddings of a batch, in smaller parts where it does not fit into memory."""

        def part(rows: Sequence[int]) -> Tensor:
            return metrics.embed(embedder, pictures[rows[0] : rows[-1] + 1], device)

        return torch.cat(in_chunks(range(len(pictures)), self._size(embedder.name, len(pictures)), part))

    def _embeddings(self, embedder: Embedder, images: Images, device: torch.device) -> Tensor:
        local = []
        with metrics.placed(embedder, device), interruptible() as look:
            for pictures in images.pictures:
                look()
                local.append(self._embedded(embedder, pictures, device))
        embeddings: Tensor = torch.cat(gather(local)).unflatten(0, (images.prompts, self._samples))
        finite = embeddings.isfinite().flatten(1).all(1).tolist()
        for prompt, good in zip(self._prompts, finite, strict=True):
            if not good:
                raise RunError(f"embedder {embedder.name!r} gave values that are not finite for the prompt {prompt!r}")
        return embeddings


def _distance(prefix: str, embeddings: Tensor, base: Tensor, device: torch.device) -> list[float]:
    """Per-prompt values of a distance, the same on every process: they share FID's work, KID's is the main one's."""
    place = device if device.type == "cuda" else torch.device("cpu")  # float64, which not every accelerator has
    images, base = embeddings.to(place), base.to(place)
    values: list[float] = []
    if prefix == FID:
        values = distance.fid(images, base).tolist()
    elif rank() == 0:
        scale = distance.coordinate_scale(base)
        values = distance.kid(scale * images, scale * base).tolist()
    return gather([values])[0]


def _reference(base: EvaluationResult | None, name: str) -> Tensor:
    embeddings: Mapping[str, Tensor] = {} if base is None else base.embeddings
    if name not in embeddings:
        raise UsageError(f"evaluation.distance: the base model's result holds no embeddings by {name!r}")
    return embeddings[name]
