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

from embedded import stages

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
    state: stages.State = None,
    steps: stages.Count = 10_000,
    vae_steps: stages.Count = 1_200,
    classifier_steps: stages.Count = 1_500,
    images: stages.Images = 50_000,
    batch: stages.Count = 64,
    peak: stages.Peak = 1e-3,
    every: stages.Every = 500,
    seed: stages.Seed = 0,
    device: stages.Device = "cpu",
    threads: stages.Threads = 1,
    stage: Annotated[list[Stage] | None, typer.Option(help="Run only these stages.")] = None,
) -> None:
    """Train the embedded Stable-Diffusion pipeline on procedural shapes and write its folder."""
    state = stages.begin(out, state, threads)
    settings = {
        "steps": steps, "vae_steps": vae_steps, "classifier_steps": classifier_steps, "images": images,
        "batch": batch, "peak": peak, "seed": seed, "device": device, "threads": threads,
    }  # fmt: skip
    wanted = stage or list(Stage)
    if Stage.CLASSIFIER in wanted:
        _classifier(state, classifier_steps, seed, device)
    if Stage.VAE in wanted:
        _vae(state, vae_steps, images, batch, seed, device)
    if Stage.UNET in wanted:
        _unet(state, steps, batch, peak, every, seed, device)
    stages.end(out, wanted, passed=Stage.FINISH not in wanted or _finish(state, out, settings))


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
    """Write a complete pipeline folder with the classifier beside it."""
    from embedded.networks import assemble, build_tokenizer, build_unet_networks, save_half

    networks = student.averaged_into(build_unet_networks())
    with stages.replaced(out) as aside:
        save_half(assemble(_load_vae(state), networks["unet"], networks["text_encoder"], build_tokenizer()), aside)
        if (state / "classifier.safetensors").exists():
            shutil.copy(state / "classifier.safetensors", aside)


def _finish(state: Path, out: Path, settings: dict[str, Any]) -> bool:
    """Copy the last snapshot to `out`, measure it there as a user would load it, and write what was found."""
    from embedded.quality import load, measure, save_samples

    trained = stages.publish(state, out, "unet.pt")
    pipeline, classifier = load(out)
    quality = measure(pipeline, classifier, seed=settings["seed"] + 3)
    save_samples(pipeline, out / "samples.png", seed=settings["seed"] + 4)
    curves = {name: json.loads((state / f"{name}.json").read_text()) for name in (Stage.CLASSIFIER, Stage.VAE)}
    stages.write_record(out, settings, quality, curves | {Stage.UNET: trained})
    return quality.passed
