"""The three named classifier-free-guidance modes (docs/method.md section 2), and what lies between them."""

from __future__ import annotations

from dataclasses import dataclass

from amsd.recipe import Guidance


@dataclass(frozen=True)
class Mode:
    """A way to use guidance in its three roles; `index` chooses the colour and the shape of a mark."""

    index: int
    name: str
    explanation: str


TRAJECTORIES = Mode(0, "CFG trajectories", "guided sampler, unguided adjoint and control")
UNGUIDED = Mode(1, "no guidance", "guidance scale 1 in fine-tuning, guidance only at inference")
FULL = Mode(2, "full CFG", "guided sampler, guided adjoint and guided control")
MIXED = Mode(3, "mixed", "guided sampler and only one of adjoint and control guided")
MODES = (TRAJECTORIES, UNGUIDED, FULL, MIXED)


def mode_of(guidance: Guidance) -> Mode:
    """The mode that a recipe's guidance section amounts to."""
    adjoint, control = guidance.guidance_in_adjoint_computation, guidance.guidance_in_control_computation
    if guidance.guidance_scale == 1:
        return UNGUIDED
    if adjoint and control:
        return FULL
    return MIXED if adjoint or control else TRAJECTORIES


def mode_named(name: str) -> Mode | None:
    """The mode of this name, as sweeps store it."""
    return next((mode for mode in MODES if mode.name == name), None)
