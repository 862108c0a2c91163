"""The command that trained the embedded model: `python -m embedded unet OUT_DIR`.

Stages: classifier, vae (with the cache of latents), unet, finish (quality gates and the weights folder). Each stage
leaves its result in the state folder and is skipped when it is there already: a stopped command goes on where it was.
"""

import json
import logging
import shutil
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

    from embedded.student import Student

log = logging.getLogger(__name__)


class Stage(StrEnum):
    """Parts of the training, in order."""

    CLASSIFIER = "classifier"
    VAE = "vae"
    UNET = "unet"
    FINISH = "finish"


def unet(
    out: Annotated[Path, typer.Argument(help="Folder for the finished pipeline (about 4 MB).")],
    state: Annotated[Path | None, typer.Option(help="Folder of intermediate results; default OUT-state.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Updates of the UNet.")] = 10_000,
    vae_steps: Annotated[int, typer.Option(min=1)] = 1_200,
    classifier_steps: Annotated[int, typer.Option(min=1)] = 1_500,
    images: Annotated[int, typer.Option(min=1, help="Scenes in the cache of latents.")] = 50_000,
    batch: Annotated[int, typer.Option(min=1)] = 64,
    peak: Annotated[float, typer.Option(help="Largest learning rate of the UNet.")] = 1e-3,
    every: Annotated[int, typer.Option(min=1, help="UNet steps between saved states and snapshots.")] = 500,
    seed: Annotated[int, typer.Option()] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads; two were slower than one here.")] = 1,
    stage: Annotated[list[Stage] | None, typer.Option(help="Run only these stages.")] = None,
) -> None:
    """Train the embedded Stable-Diffusion pipeline on procedural shapes and write its folder."""
    import torch

    torch.set_num_threads(threads)
    state = state or out.with_name(out.name + "-state")
    state.mkdir(parents=True, exist_ok=True)
    settings = {
        "steps": steps, "vae_steps": vae_steps, "classifier_steps": classifier_steps, "images": images,
        "batch": batch, "peak": peak, "seed": seed, "device": device, "threads": threads,
    }  # fmt: skip
    stages = stage or list(Stage)
    if Stage.CLASSIFIER in stages:
        _classifier(state, classifier_steps, seed, device)
    if Stage.VAE in stages:
        _vae(state, vae_steps, images, batch, seed, device)
    if Stage.UNET in stages:
        _unet(state, steps, batch, peak, every, seed, device)
    if Stage.FINISH in stages and not _finish(state, out, settings):
        typer.echo(f"a quality gate failed: see {out / 'training.json'}", err=True)
        raise typer.Exit(1)
    typer.echo(f"done: {', '.join(stages)}")


def _record(state: Path, stage: Stage, result: dict[str, Any]) -> None:
    (state / f"{stage}.json").write_text(json.dumps(result))


def _classifier(state: Path, steps: int, seed: int, device: str) -> None:
    from embedded.classifier import train_classifier

    path = state / "classifier.safetensors"
    if not path.exists():
        _record(state, Stage.CLASSIFIER, train_classifier(path, steps=steps, batch=64, seed=seed, device=device))


def _vae(state: Path, steps: int, images: int, batch: int, seed: int, device: str) -> None:
    from embedded.vae import cache_latents, train_vae

    path = state / "vae.safetensors"
    if not path.exists():
        _record(state, Stage.VAE, train_vae(path, steps=steps, batch=batch, seed=seed, device=device))
    if not (state / "latents.safetensors").exists():
        vae = _load_vae(state).to(device)
        cache_latents(vae, state / "latents.safetensors", count=images, seed=seed + 2, device=device)


def _load_vae(state: Path) -> "AutoencoderKL":
    from safetensors.torch import load_file

    from embedded.networks import build_vae

    vae = build_vae()
    vae.load_state_dict(load_file(state / "vae.safetensors"))
    return vae.eval()


def _unet(state: Path, steps: int, batch: int, peak: float, every: int, seed: int, device: str) -> None:
    from embedded.unet import train_unet

    def snapshot(student: "Student", step: int) -> None:
        _write_pipeline(state, student, state / "snapshot")
        log.info("snapshot of step %d in %s", step, state / "snapshot")

    result = train_unet(
        state / "latents.safetensors", state / "unet.pt", steps=steps, batch=batch, seed=seed, device=device,
        peak=peak, every=every, snapshot=snapshot,
    )  # fmt: skip
    _record(state, Stage.UNET, result)


def _write_pipeline(state: Path, student: "Student", out: Path) -> None:
    """Write a complete pipeline folder with the classifier beside it; complete or absent, never half."""
    from embedded.networks import assemble, build_tokenizer, build_unet_networks, save_half

    aside = out.with_name(out.name + "-new")
    shutil.rmtree(aside, ignore_errors=True)
    networks = student.averaged_into(build_unet_networks())
    save_half(assemble(_load_vae(state), networks["unet"], networks["text_encoder"], build_tokenizer()), aside)
    if (state / "classifier.safetensors").exists():
        shutil.copy(state / "classifier.safetensors", aside)
    shutil.rmtree(out, ignore_errors=True)
    aside.rename(out)


def _finish(state: Path, out: Path, settings: dict[str, Any]) -> bool:
    """Copy the last snapshot to `out`, measure it there as a user would load it, and write what was found."""
    import torch

    from embedded.quality import library_versions, load, measure, save_samples

    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(state / "snapshot", out)
    # The state beside the snapshot, read at once: a snapshot can be finished while the training goes on.
    trained = torch.load(state / "unet.pt", weights_only=True, map_location="cpu")
    pipeline, classifier = load(out)
    quality = measure(pipeline, classifier, seed=settings["seed"] + 3)
    save_samples(pipeline, out / "samples.png", seed=settings["seed"] + 4)
    curves = {stage: json.loads((state / f"{stage}.json").read_text()) for stage in (Stage.CLASSIFIER, Stage.VAE)}
    curves[Stage.UNET] = {"steps": trained["step"], "curve": trained["curve"]}
    record = {"settings": settings, "libraries": library_versions(), "quality": quality.to_json(), "log": curves}
    (out / "training.json").write_text(json.dumps(record) + "\n")
    for name, value in quality.measured.items():
        log.info("%s: %s", name, value)
    for name in quality.failures():
        log.error("gate missed: %s", name)
    return quality.passed
