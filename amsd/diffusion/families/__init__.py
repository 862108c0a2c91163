"""Families of text-to-image models: everything that depends on the architecture, one file per family.

A family is one row of `FAMILIES` (its pipeline's class -> `module:class`), or an entry point of the group
`amsd.families` in an installed package. Nothing outside this folder knows a network by its class or its name in a
pipeline (docs/extending.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from amsd.errors import UsageError
from amsd.plugins import Seam

if TYPE_CHECKING:
    from amsd.diffusion.families.base import Family
    from amsd.recipe import Model

FAMILIES: dict[str, str] = {
    "StableDiffusionPipeline": "amsd.diffusion.families.stable_diffusion:StableDiffusion",
    "StableDiffusionXLPipeline": "amsd.diffusion.families.stable_diffusion_xl:StableDiffusionXL",
    "StableDiffusion3Pipeline": "amsd.diffusion.families.stable_diffusion_3:StableDiffusion3",
    "FluxPipeline": "amsd.diffusion.families.flux:Flux",
}
"""Class of the pipeline, as its model_index.json names it -> `module:class` of its family."""

_SEAM = Seam(
    "a family", "amsd.families", FAMILIES, base="amsd.diffusion.families.base:Family",
    members=("denoiser_name", "denoiser_class", "output_layers"),
)  # fmt: skip


def known_families() -> dict[str, str]:
    """Every family by its pipeline's class, those of installed packages too."""
    return _SEAM.rows()


def family_class(pipeline_class: str) -> type[Family]:
    """The family of a pipeline's class.

    Raises:
        UsageError: it is not supported, or lacks something that a family has.
    """
    if pipeline_class not in _SEAM.rows():
        raise UsageError(f"{pipeline_class} is not supported; amsd supports {', '.join(_SEAM.shown())}.")
    return cast("type[Family]", _SEAM.load(pipeline_class))


def family_for(pipeline: Any, model: Model | None = None) -> Family:
    """The family of a loaded pipeline, with the choices of a recipe (unset: the defaults).

    Raises:
        UsageError: the family is not supported, or a choice means nothing to it.
    """
    return family_class(type(pipeline).__name__)(pipeline, model)
