"""The three named classifier-free-guidance modes (docs/method.md section 2), and what lies between them."""

from __future__ import annotations

from dataclasses import dataclass

from amsd.recipe.schema import Guidance


@dataclass(frozen=True)
class GuidanceMode:
    """A way to use guidance in its three roles."""

    index: int
    """Place in `MODES`; reports choose color and shape of a mark by it."""
    slug: str
    """Name in file names and keys."""
    name: str
    """Name in sentences, and as sweeps store it."""
    explanation: str


TRAJECTORIES = GuidanceMode(0, "cfg-trajectories", "CFG trajectories", "guided sampler, unguided adjoint and control")
UNGUIDED = GuidanceMode(1, "no-guidance", "no guidance", "guidance scale 1 in fine-tuning, guidance only at inference")
FULL = GuidanceMode(2, "full-cfg", "full CFG", "guided sampler, guided adjoint and guided control")
MIXED = GuidanceMode(3, "mixed", "mixed", "guided sampler and only one of adjoint and control guided")
MODES = (TRAJECTORIES, UNGUIDED, FULL, MIXED)


def mode_of(guidance: Guidance) -> GuidanceMode:
    """The mode that a recipe's guidance section amounts to."""
    adjoint, control = guidance.guidance_in_adjoint_computation, guidance.guidance_in_control_computation
    if guidance.guidance_scale == 1:
        return UNGUIDED
    if adjoint and control:
        return FULL
    return MIXED if adjoint or control else TRAJECTORIES


def mode_named(name: str) -> GuidanceMode | None:
    """The mode of this name, as sweeps store it."""
    return next((mode for mode in MODES if mode.name == name), None)
