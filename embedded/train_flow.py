"""The command that trained the embedded flow model: `python -m embedded flow OUT_DIR`.

Stages: latents (of the UNet model's autoencoder, which both models share), transformer, finish (quality gates and the
weights folder). Each stage is skipped when its result is in the state folder: a stopped command goes on where it was.
"""

import logging
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedded import stages

if TYPE_CHECKING:
    from embedded.student import Student

log = logging.getLogger(__name__)

SHIFT = 3.0
"""Shift of the scheduler that is saved with the weights: most steps at high noise, where objects are placed."""


class FlowStage(StrEnum):
    """Parts of the training, in order."""

    LATENTS = "latents"
    TRANSFORMER = "transformer"
    FINISH = "finish"


def flow(
    out: Annotated[Path, typer.Argument(help="Folder for the finished pipeline (about 8 MB).")],
    state: stages.State = None,
    steps: stages.Count = 10_000,
    images: stages.Images = 60_000,
    batch: stages.Count = 64,
    peak: stages.Peak = 1e-3,
    every: stages.Every = 500,
    seed: stages.Seed = 0,
    device: stages.Device = "cpu",
    threads: stages.Threads = 1,
    stage: Annotated[list[FlowStage] | None, typer.Option(help="Run only these stages.")] = None,
) -> None:
    """Train the embedded Stable Diffusion 3 pipeline on procedural shapes and write its folder."""
    state = stages.begin(out, state, threads)
    wanted = stage or list(FlowStage)
    if FlowStage.LATENTS in wanted and not (state / "latents.safetensors").exists():
        from embedded.flow_networks import load_vae
        from embedded.vae import cache_latents

        cache_latents(load_vae().to(device), state / "latents.safetensors", count=images, seed=seed + 2, device=device)
    if FlowStage.TRANSFORMER in wanted:
        _transformer(state, steps, batch, peak, every, seed, device)
    settings = {
        "steps": steps, "images": images, "batch": batch, "peak": peak, "seed": seed, "device": device,
        "threads": threads, "shift": SHIFT,
    }  # fmt: skip
    stages.end(out, wanted, passed=FlowStage.FINISH not in wanted or _finish(state, out, settings))


def _transformer(state: Path, steps: int, batch: int, peak: float, every: int, seed: int, device: str) -> None:
    from embedded.flow import train_flow

    def snapshot(student: "Student", step: int) -> None:
        _write_pipeline(student, state / "snapshot")
        log.info("snapshot of step %d in %s", step, state / "snapshot")

    train_flow(
        state / "latents.safetensors", state / "transformer.pt", steps=steps, batch=batch, seed=seed, device=device,
        peak=peak, every=every, snapshot=snapshot,
    )  # fmt: skip


def _write_pipeline(student: "Student", out: Path) -> None:
    """Write a complete pipeline folder from the averaged weights."""
    from embedded.flow_networks import build_networks, save_flow

    with stages.replaced(out) as aside:
        save_flow(student.averaged_into(build_networks()), aside, SHIFT)


def _finish(state: Path, out: Path, settings: dict[str, Any]) -> bool:
    """Copy the last snapshot to `out`, measure it there as a user would load it, and write what was found."""
    from amsd.shapes import prompts_path
    from embedded.flow_quality import generate_flow, load_flow, measure_flow
    from embedded.quality import sheet_of

    trained = stages.publish(state, out, "transformer.pt")
    quality = measure_flow(out, seed=settings["seed"] + 3)
    prompts = prompts_path("evaluation").read_text().splitlines()
    repeated = [prompt for prompt in prompts for _ in range(6)]
    sheet_of(generate_flow(load_flow(out), repeated, seed=settings["seed"] + 4), prompts).save(out / "samples.png")
    stages.write_record(out, settings, quality, {FlowStage.TRANSFORMER: trained})
    return quality.passed
