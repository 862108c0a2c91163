"""Loading of a pipeline: hub id, local diffusers folder, single-file checkpoint or the embedded model."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from amsd import hub
from amsd.diffusion.families import family_for
from amsd.diffusion.families.base import Family
from amsd.diffusion.families.single_file import default_configuration, load_single_file
from amsd.diffusion.folder import inspect, require_pipeline
from amsd.diffusion.parts import load_pipeline, require_fit
from amsd.errors import UsageError
from amsd.hub import Repository
from amsd.reading import reading
from amsd.recipe import Model
from amsd.recipe.schema import only_path

EMBEDDED = "embedded:"
_CONFIGURATION_FILES = ("*.json", "*.txt")


def load_family(model: Model) -> Family:
    """Load the pipeline that a recipe names, on the CPU in float32, without safety checker.

    Raises:
        UsageError: it is absent, unreachable, damaged or of an unsupported family, or its parts and configurations do
            not fit together; the text names the file and says what to do.
    """
    _hide_loading_bars()
    what = f"model.pretrained = {model.pretrained!r}"
    if model.is_single_file:
        pipeline = load_single_file(Path(locate(model)), locate_configuration(model))
    else:
        pipeline = load_pipeline(inspect(local_folder(model), what, model.variant, model.t5), what)
    pipeline.set_progress_bar_config(disable=True)
    _require_fit(pipeline, what)
    family = family_for(pipeline, model)
    if model.vae_tiling:
        _tile(family)
    return family


def other_model(model: Model, pretrained: str) -> Model:
    """The recipe's choices for another pipeline; revision and variant belong to the recipe's own.

    A single file without a configuration is read with that of the recipe's model.
    """
    if pretrained == model.pretrained:
        return model
    changed = {"pretrained": pretrained, "start": None, "revision": None, "variant": None}
    own = None if model.is_single_file else model.pretrained
    other = model.model_copy(update=changed)
    return other.model_copy(update={"config": model.config or own}) if other.is_single_file else other


@contextmanager
def named_as(pretrained: str, what: str) -> Iterator[None]:
    """Inside, messages about `other_model` name what the user wrote, not the recipe's `model.pretrained`."""
    try:
        yield
    except UsageError as error:
        raise UsageError(str(error).replace(f"model.pretrained = {pretrained!r}", what)) from error


def local_folder(model: Model) -> Path:
    """The folder of a pipeline, downloaded if it has to be.

    Raises:
        UsageError: it is absent or cannot be downloaded.
    """
    from diffusers import DiffusionPipeline

    source = locate(model)
    if Path(source).is_dir():
        return Path(source)
    what = f"model.pretrained = {source!r}"
    again = f"Try again, or download it once: `hf download {source}`."
    with reading(what, "its download", again), Repository(source, model.revision).telling():
        found = DiffusionPipeline.download(
            source, revision=model.revision, variant=model.variant, safety_checker=None, requires_safety_checker=False,
            **({} if model.t5 else {"text_encoder_3": None, "tokenizer_3": None}),
        )  # fmt: skip
    return Path(found)


def _require_fit(pipeline: Any, what: str) -> None:
    configs = {name: part.config for name, part in pipeline.components.items() if hasattr(part, "config")}
    plain = {name: config.to_dict() if hasattr(config, "to_dict") else config for name, config in configs.items()}
    tokenizers = {
        name: part for name, part in pipeline.components.items() if name.startswith("tokenizer") and part is not None
    }
    require_fit(type(pipeline).__name__, plain, tokenizers, what)


def _tile(family: Family) -> None:
    """Decode in tiles of about half an image's side: diffusers' own are a whole image, so it would never tile."""
    pipeline = family.pipeline
    # A multiple of 4: neighbors share a quarter of a tile, which must be whole latents, or the image loses its size.
    side = 4 * math.ceil(max(family.size) / pipeline.vae_scale_factor / 8)
    pipeline.vae.enable_tiling()
    pipeline.vae.tile_latent_min_size = side
    pipeline.vae.tile_sample_min_size = side * pipeline.vae_scale_factor


def _hide_loading_bars() -> None:
    """Bars of a local load would break amsd's own display; those of downloads, which take minutes, stay."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    with hub.keeping_download_bars():  # transformers hides them too
        transformers_logging.disable_progress_bar()


def locate(model: Model) -> str:
    """The folder, file or hub id that `model.pretrained` means, found without a long wait.

    Raises:
        UsageError: nothing is there.
    """
    name = model.pretrained
    if model.is_single_file:
        path = Path(name).expanduser()
        if path.is_dir():
            raise UsageError(
                f"model.pretrained = {name!r} is a folder, but amsd reads {path.suffix} as a file: rename the folder."
            )
        if not path.is_file():
            raise UsageError(f"model.pretrained = {name!r}: no such file.")
        return str(path)
    folder = _local("model.pretrained", name)
    if folder is not None:
        return str(folder)
    how = (
        f"Download it once while online (`hf download {name}`), or set model.pretrained to a local diffusers folder "
        "or single-file checkpoint. `embedded:shapes` always works."
    )
    _require_on_hub(f"model.pretrained = {name!r}", Repository(name, model.revision), how)
    return name


def locate_configuration(model: Model) -> Path:
    """The diffusers folder with the configuration that a single-file checkpoint is read with, downloaded if need be.

    Raises:
        UsageError: nothing is there, or nothing is named and the file's family has no default.
    """
    named = model.config
    name = named or default_configuration(Path(model.pretrained).expanduser())
    folder = None if named is None else _local("model.config", name)
    if folder is not None:
        return folder
    patterns = " ".join(f"--include '{pattern}'" for pattern in _CONFIGURATION_FILES)
    how = (
        f"{model.pretrained} holds weights only: set model.config to a local diffusers folder of the same "
        f"architecture (its weights are not read), or download configuration and tokenizer once while online: "
        f"`hf download {name} {patterns}`."
    )
    what = f"{'model.config' if named else 'model.config (by default for this file)'} = {name!r}"
    repository = Repository(name, model.revision)
    _require_on_hub(what, repository, how)
    return repository.folder(_CONFIGURATION_FILES, what, how)


def _require_on_hub(what: str, repository: Repository, how: str) -> None:
    """Check that a pipeline is in the hub's cache, or that it could be downloaded."""
    if repository.cached("model_index.json", what) is None:
        revision = "" if repository.revision is None else f" with model.revision = {repository.revision!r}"
        repository.require(what + revision, how)


def _local(key: str, name: str) -> Path | None:
    """The local or embedded diffusers folder that a name means; None for what can only be a hub id."""
    if name.startswith(EMBEDDED):
        return _embedded(key, name)
    path = Path(name).expanduser()
    if path.is_dir():
        require_pipeline(path, f"{key} = {name!r}")
        return path
    if path.is_file():
        raise UsageError(
            f"{key} = {name!r} is a file that amsd does not read: checkpoints are .safetensors or .ckpt, LoRA files "
            ".safetensors. Convert it, or name a diffusers folder."
        )
    if only_path(name):
        hub_id = re.match(r"https?://[^/]+/([^/]+/[^/?#]+)", name)
        hint = f" On the hub it is {hub_id[1]}: write that." if hub_id else ""
        raise UsageError(f"{key} = {name!r}: no such folder.{hint}")
    return None


def _embedded(key: str, name: str) -> Path:
    from amsd.shapes import MODELS, pipeline_path

    model = name.removeprefix(EMBEDDED)
    if model not in MODELS:
        known = " and ".join(repr(EMBEDDED + known) for known in MODELS)
        raise UsageError(f"{key} = {name!r}: the embedded models are {known}.")
    folder = pipeline_path(model)
    if not (folder / "model_index.json").is_file():
        raise UsageError(f"The embedded model {name!r} is missing from this installation; reinstall amsd.")
    return folder
