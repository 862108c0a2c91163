"""What an evaluation under one setting is asked for, and the identities under which the cache may know it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from amsd.diffusion.families.base import Family
from amsd.errors import UsageError
from amsd.evaluation import protocol
from amsd.evaluation.identity import identity, library_versions
from amsd.evaluation.result import EvaluationResult, base_weights, is_distance, pairable
from amsd.evaluation.scorers import Scorers
from amsd.recipe import Recipe


@dataclass(frozen=True)
class Wanted:
    """What one setting is asked for, each with the identity under which the cache may know it."""

    settings: dict[str, Any]
    images: str
    """Identity of the pictures."""
    versions: dict[str, str]
    """Version of each metric by name, in the order of the result."""
    metrics: dict[str, str]
    """Identity of each metric's values."""
    references: dict[str, str]
    """Identity of the embeddings of each embedder that distances to these pictures will need."""
    base: EvaluationResult | None


def wanted_of(
    recipe: Recipe, prompts: tuple[str, ...], scorers: Scorers, family: Family, sampler: protocol.Sampler, weights: str,
    base: EvaluationResult | None,
) -> Wanted:  # fmt: skip
    """What this setting is asked for.

    Raises:
        UsageError: the base model's result was made under other conditions.
    """
    settings = _settings(recipe, family, sampler, weights)
    if base is not None and not pairable(base, settings, prompts):
        raise UsageError(
            f"{sampler.setting.name}: the base model's result was made under other conditions; "
            "evaluate the base model again"
        )
    images = identity({"settings": settings, "prompts": prompts})
    versions = scorers.versions(base)
    metrics = {}
    for name, version in versions.items():
        ingredients = {"images": images, "metric": [name, version]}
        if base is not None and is_distance(name):
            # All other conditions are those of these images, but for the sampler of another pipeline.
            own = base.settings["sampler"] == settings["sampler"]
            ingredients["base"] = base_weights(base) if own else [base_weights(base), base.settings["sampler"]]
        metrics[name] = identity(ingredients)
    references = scorers.references.items() if base is None else ()
    kept = {name: identity({"images": images, "embeddings": [name, version]}) for name, version in references}
    return Wanted(settings, images, versions, metrics, kept, base)


def _settings(recipe: Recipe, family: Family, sampler: protocol.Sampler, weights: str) -> dict[str, Any]:
    """Everything but the prompts that determines the images."""
    # Only where it is on: results that were made without it keep their identity.
    tiling = {"vae_tiling": True} if getattr(family.pipeline.vae, "use_tiling", False) else {}
    model = recipe.model
    size = {} if model.size is None else {"size": list(family.size)}
    quantization = {} if model.quantization is None else {"quantization": model.quantization}
    prompt = recipe.guidance.negative_prompt if sampler.setting.guidance_scale != 1 else ""
    negative = {"negative_prompt": prompt} if prompt else {}
    return {
        "name": sampler.setting.name,
        **sampler.setting.model_dump(),
        "sampler": sampler.description,
        "samples_per_prompt": recipe.evaluation.samples_per_prompt,
        "seed": recipe.evaluation.seed,
        "precision": recipe.model.precision,
        "weights": weights,
        "protocol": protocol.PROTOCOL_VERSION,
        "libraries": library_versions(),
        **tiling,
        **size,
        **quantization,
        **negative,
        **family.choices,
    }
