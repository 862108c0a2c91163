"""Training steps at the sizes of published models: Stable Diffusion 3.5 medium, XL, and networks divided by FSDP2.

Random weights in the published architectures, one image at a time, through amsd's own path. Each line has the seconds
of an update, the card's peak memory by phase, and beside it what `amsd train --dry-run` says of the same recipe.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import workbench

from amsd.diffusion.families.base import Family
from amsd.diffusion.families.stable_diffusion_3 import StableDiffusion3
from amsd.diffusion.families.stable_diffusion_xl import StableDiffusionXL
from amsd.experiment.plan import Plan, make_plan
from amsd.recipe import Recipe
from gpu_check.children import run_child
from gpu_check.record import Check
from gpu_check.smoke import train_embedded
from gpu_check.steps import reserve_for_compile

GPU = Path(__file__).parents[1] / "gpu.py"
GIB = 2**30
FSDP_SECONDS = 45.0
"""For the child that divides networks."""


@dataclass(frozen=True)
class Size:
    """A published model at one size of picture."""

    name: str
    needs: float
    """Seconds on a card."""
    gigabytes: float
    """Memory of the smallest card that is tried, GB."""
    family: type[Family]
    pretrained: str
    side: int
    parameterization: str = "lora"
    inference_steps: int = 10
    guidance_scale: float = 4.5

    def recipe(self, tiny: bool, fsdp: bool = False) -> Recipe:
        """One trajectory per update, four of its steps in the loss; it asks for more updates than are made."""
        model: dict[str, Any] = {
            "pretrained": self.pretrained, "parameterization": self.parameterization, "precision": "bf16",
            "size": [64, 64] if tiny else [self.side, self.side],
        }  # fmt: skip
        schedule: dict[str, Any] = {"num_inference_steps": 6 if tiny else self.inference_steps}
        if self.family is StableDiffusion3:
            model["t5"] = False
            schedule["shift_terminal"] = 0.1
        return workbench.recipe_of(
            {
                "model": model, "schedule": schedule, "guidance": {"guidance_scale": self.guidance_scale},
                "method": {"timesteps_per_trajectory": 4},
                "optimizer": {"prompts_per_step": 1, "micro_batch": 1},
                "training": {"steps": 100, "checkpoint_every": 100, "gradient_checkpointing": True, "fsdp": fsdp},
            }
        )  # fmt: skip


SD35 = "stabilityai/stable-diffusion-3.5-medium"
SIZES = (
    Size("SD 3.5 medium, LoRA, 512", 12, 24, StableDiffusion3, SD35, 512),
    Size("SD 3.5 medium, LoRA, 1024", 15, 24, StableDiffusion3, SD35, 1024),
    Size("SDXL, LoRA, 1024", 15, 24, StableDiffusionXL, "stabilityai/stable-diffusion-xl-base-1.0", 1024),
    Size("SD 3.5 medium, full, 512", 15, 78, StableDiffusion3, SD35, 512, parameterization="full"),
)


@dataclass
class Peaks(workbench.StepTimer):
    """Times of the steps, and the card's peak memory in each phase, GiB."""

    check: Check | None = None
    gib: dict[str, float] = field(default_factory=dict)
    _phase: str = "start"

    def on_phase(self, phase: str, step: int) -> None:
        self.note()
        self._phase = phase

    def note(self) -> None:
        """Keep the peak of the phase that ends here."""
        if self.check is not None and self.check.cuda:
            peak = torch.cuda.max_memory_allocated() / GIB
            self.gib[self._phase] = round(max(peak, self.gib.get(self._phase, 0.0)), 2)
            torch.cuda.reset_peak_memory_stats()


def sizes(check: Check) -> None:
    """Adapters, FSDP2, all weights: what card and time allow."""
    reserve = reserve_for_compile(check)
    for size in SIZES:
        if size.parameterization == "full":
            needs = reserve + (25 if check.cuda else 1)
            check.attempt("sizes", lambda: divided(check), needs=needs, case="FSDP2, one process")
        needs = reserve + (size.needs if check.cuda else 1)
        check.attempt("sizes", lambda: measure(check, size), needs=needs, case=size.name)  # noqa: B023


def measure(check: Check, size: Size) -> None:
    """An update to warm up, then one that is timed."""
    if check.cuda and torch.cuda.get_device_properties(check.device).total_memory < 0.95e9 * size.gigabytes:
        check.say("sizes", case=size.name, skipped=f"needs a card of {size.gigabytes:g} GB")
        return
    recipe = size.recipe(check.options.tiny)
    pipeline = workbench.published_pipeline(size.family, check.options.tiny, check.device, torch.bfloat16)
    problem, accelerator = workbench.set_up(recipe, pipeline, check.device)
    check.clean()
    found = Peaks(2, check.sync, check=check)
    workbench.run_steps(problem, accelerator, found)
    found.note()
    check.say("sizes", **_row(size, recipe, found))


def _row(size: Size, recipe: Recipe, found: Peaks) -> dict[str, Any]:
    plan = make_plan(recipe, 1)
    seconds, forwards = found.seconds[-1], workbench.forwards_per_step(recipe)
    phases = {name.split("/")[1]: v for name, v in found.values[-1].items() if name.startswith("seconds/")}
    return {
        "case": f"FSDP2, {size.name}" if recipe.training.fsdp else size.name,
        "s_first": round(found.seconds[0], 3), "s_per_update": round(seconds, 3),
        "forwards_per_s": round(forwards / seconds, 1),
        "tflops": round(forwards * plan.flops_per_forward / seconds / 1e12, 1),
        "peak_gib": max(found.gib.values(), default=None), "peak_gib_by_phase": found.gib, **_planned(plan),
        "phases": {name: round(value, 3) for name, value in phases.items()}, "loss": found.values[-1]["loss"],
    }  # fmt: skip


def _planned(plan: Plan) -> Mapping[str, Any]:
    """What the plan says of the published size, whatever was run."""
    weights, decoder, adjoint = plan.memory_bytes / GIB, plan.decoding_bytes / GIB, plan.back_bytes / GIB
    return {
        "plan_gib": round(weights + max(decoder, adjoint), 2), "plan_gib_weights": round(weights, 2),
        "plan_gib_decoder": round(decoder, 2), "plan_gib_adjoint": round(adjoint, 2),
        "plan": dict(plan.lines())["memory"],
    }  # fmt: skip


def divided(check: Check) -> None:
    """FSDP2 with one process, in a child: a group of processes cannot be left again."""
    limit = min(FSDP_SECONDS, check.left - reserve_for_compile(check)) if check.cuda else 200.0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launched = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    arguments = ["--fsdp-child", "--budget", str(limit)]
    run_child(check, "sizes", arguments, launched | address, limit, case="FSDP2, one process")


def in_child(check: Check) -> None:
    """In a group of one process: the embedded flow model divided and whole, then a large one."""
    check.attempt("sizes", lambda: _alike(check), case="FSDP2, embedded flow model")
    size = SIZES[-1]
    if check.cuda or check.options.tiny:
        check.attempt("sizes", lambda: _large(check, size), needs=15 if check.cuda else 1, case=f"FSDP2, {size.name}")


def _alike(check: Check) -> None:
    """Losses of a divided network against those of a whole one, in both precisions."""
    for precision in ("fp32",) if check.options.tiny else ("fp32", "bf16"):
        sets = ("training.tf32=false", f"model.precision={precision}", "evaluation.every=0")
        divided, whole = (
            train_embedded(*sets, f"training.fsdp={fsdp}", recipe="flow", steps=3)[0] for fsdp in ("true", "false")
        )
        errors = {name: abs(divided[name] / whole[name] - 1) for name in ("loss", "reward", "kl2")}
        check.say("sizes", case=f"FSDP2, embedded flow model, {precision}", relative_difference=errors, s=divided["s"])


def _large(check: Check, size: Size) -> None:
    """The last of the sizes, divided by accelerate among one process."""
    if check.cuda and torch.cuda.get_device_properties(check.device).total_memory < 0.95e9 * size.gigabytes:
        check.say("sizes", case=f"FSDP2, {size.name}", skipped=f"needs a card of {size.gigabytes:g} GB")
        return
    recipe = size.recipe(check.options.tiny, fsdp=True)
    pipeline = workbench.published_pipeline(size.family, check.options.tiny, check.device, torch.bfloat16)
    with workbench.set_up_divided(recipe, pipeline) as (problem, accelerator):
        found = Peaks(2, check.sync, check=check)
        check.clean()
        workbench.run_steps(problem, accelerator, found)
        found.note()
        divided = type(problem.policy.trained_network).__name__
    check.say("sizes", **_row(size, recipe, found), network=divided, fsdp2=accelerator.is_fsdp2)
