"""The command that trained the embedded flow model: `python -m embedded flow OUT_DIR`.

Stages: latents (of the UNet model's autoencoder, which both models share), transformer, finish (quality gates and the
weights folder). Each stage is skipped when its result is in the state folder: a stopped command goes on where it was.
"""

import json
import logging
import shutil
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
    state: Annotated[Path | None, typer.Option(help="Folder of intermediate results; default OUT-state.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Updates of the transformer.")] = 10_000,
    images: Annotated[int, typer.Option(min=1, help="Scenes in the cache of latents.")] = 60_000,
    batch: Annotated[int, typer.Option(min=1)] = 64,
    peak: Annotated[float, typer.Option(help="Largest learning rate.")] = 1e-3,
    every: Annotated[int, typer.Option(min=1, help="Steps between saved states and snapshots.")] = 500,
    seed: Annotated[int, typer.Option()] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads; two were slower than one here.")] = 1,
    stage: Annotated[list[FlowStage] | None, typer.Option(help="Run only these stages.")] = None,
) -> None:
    """Train the embedded Stable Diffusion 3 pipeline on procedural shapes and write its folder."""
    import torch

    torch.set_num_threads(threads)
    state = state or out.with_name(out.name + "-state")
    state.mkdir(parents=True, exist_ok=True)
    stages = stage or list(FlowStage)
    if FlowStage.LATENTS in stages and not (state / "latents.safetensors").exists():
        from embedded.flow_networks import load_vae
        from embedded.vae import cache_latents

        cache_latents(load_vae().to(device), state / "latents.safetensors", count=images, seed=seed + 2, device=device)
    if FlowStage.TRANSFORMER in stages:
        _transformer(state, steps, batch, peak, every, seed, device)
    settings = {
        "steps": steps, "images": images, "batch": batch, "peak": peak, "seed": seed, "device": device,
        "threads": threads, "shift": SHIFT,
    }  # fmt: skip
    if FlowStage.FINISH in stages and not _finish(state, out, settings):
        typer.echo(f"a quality gate failed: see {out / 'training.json'}", err=True)
        raise typer.Exit(1)
    typer.echo(f"done: {', '.join(stages)}")


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
    """Write a complete pipeline folder from the averaged weights; complete or absent, never half."""
    from embedded.flow_networks import build_networks, save_flow

    aside = out.with_name(out.name + "-new")
    shutil.rmtree(aside, ignore_errors=True)
    save_flow(student.averaged_into(build_networks()), aside, SHIFT)
    shutil.rmtree(out, ignore_errors=True)
    aside.rename(out)


def _finish(state: Path, out: Path, settings: dict[str, Any]) -> bool:
    """Copy the last snapshot to `out`, measure it there as a user would load it, and write what was found."""
    import torch

    from amsd.shapes import prompts_path
    from embedded.flow_quality import generate_flow, load_flow, measure_flow
    from embedded.quality import library_versions, sheet_of

    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(state / "snapshot", out)
    trained = torch.load(state / "transformer.pt", weights_only=True, map_location="cpu")
    quality = measure_flow(out, seed=settings["seed"] + 3)
    prompts = prompts_path("evaluation").read_text().splitlines()
    repeated = [prompt for prompt in prompts for _ in range(6)]
    sheet_of(generate_flow(load_flow(out), repeated, seed=settings["seed"] + 4), prompts).save(out / "samples.png")
    record = {
        "settings": settings, "libraries": library_versions(), "quality": quality.to_json(),
        "log": {"transformer": {"steps": trained["step"], "curve": trained["curve"]}},
    }  # fmt: skip
    (out / "training.json").write_text(json.dumps(record) + "\n")
    for name, value in quality.measured.items():
        log.info("%s: %s", name, value)
    for name in quality.failures():
        log.error("gate missed: %s", name)
    return quality.passed
