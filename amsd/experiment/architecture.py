"""What a model consists of, known without loading a weight: for plans."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amsd.diffusion.folder import inspect
from amsd.diffusion.loading import EMBEDDED, locate, locate_configuration
from amsd.diffusion.parts import require_sound
from amsd.diffusion.single_file import default_configuration, parameters, stored_shapes
from amsd.errors import UsageError
from amsd.recipe import Model

#: UNet of Stable Diffusion 1.x, for plans made before it was ever downloaded (diffusers' configuration of the model).
_SD1_UNET: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
_SD1_OTHER_PARAMETERS = 123_060_480 + 83_653_863  # CLIP text encoder and AutoencoderKL
_SD1_NAMES = ("stable-diffusion-v1", "CompVis/stable-diffusion-v1")
_NOTHING = "nothing, it is on this machine"


@dataclass(frozen=True)
class Architecture:
    """What a model consists of."""

    unet: dict[str, Any]
    """Configuration of the UNet."""
    other_parameters: int
    """Parameters of the autoencoder and the text encoders."""
    download: str
    """What has to be downloaded."""

    def check(self, model: Model, unet_parameters: int) -> None:
        """A single file and its configuration can disagree: say so before the run.

        Raises:
            UsageError: the file's UNet has another number of parameters than the configuration's.
        """
        if not model.is_single_file:
            return
        found, _ = parameters(stored_shapes(Path(locate(model))))
        if found != unet_parameters:
            raise UsageError(
                f"model.pretrained = {model.pretrained!r} holds a UNet of {found:,} parameters but its configuration "
                f"describes one of {unet_parameters:,}: set model.config to that of the same architecture."
            )


def architecture(model: Model) -> Architecture:
    """The architecture of a recipe's model.

    Raises:
        UsageError: the model is absent and its architecture is unknown.
    """
    name = model.pretrained
    if model.is_single_file:
        return _of_single_file(model)
    if not name.startswith(EMBEDDED) and not Path(name).expanduser().exists():
        cached = _cached(name, model.revision)
        if cached is None and not _is_sd1(name):
            locate(model)  # says why it cannot be found
            raise UsageError(f"model.pretrained = {name!r}: download it once; its architecture is not known to amsd.")
        gigabytes = 4.27 if model.variant is None else 2.14
        download = "nothing, it is in the local cache" if cached else f"about {gigabytes} GB from the hub: {name}"
        return Architecture(cached or _SD1_UNET, _SD1_OTHER_PARAMETERS, download)
    folder = Path(locate(model))
    what = f"model.pretrained = {name!r}"
    require_sound(inspect(folder, what, model.variant, model.t5), what)
    configuration = _unet_configuration(folder)
    others = sum(
        _stored_parameters(path) for part in ("vae", "text_encoder", "text_encoder_2")
        for path in sorted((folder / part).glob("*.safetensors"))
    )  # fmt: skip
    return Architecture(configuration, others, _NOTHING)


def _of_single_file(model: Model) -> Architecture:
    """As `architecture`, of a checkpoint whose configuration lies elsewhere."""
    file = Path(locate(model))
    _, others = parameters(stored_shapes(file))
    name = model.config or default_configuration(file)
    local = name.startswith(EMBEDDED) or Path(name).expanduser().exists()
    if not local and _cached(name, model.revision) is None and _is_sd1(name):
        return Architecture(_SD1_UNET, others, f"configuration and tokenizer, about 2 MB, from the hub: {name}")
    return Architecture(_unet_configuration(locate_configuration(model)), others, _NOTHING)


def _is_sd1(name: str) -> bool:
    return any(part in name for part in _SD1_NAMES)


def _unet_configuration(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
    return found


def _cached(name: str, revision: str | None) -> dict[str, Any] | None:
    """The UNet's configuration of a hub repository, if it has been downloaded."""
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(name, "unet/config.json", revision=revision)
    return _unet_configuration(Path(file).parent.parent) if isinstance(file, str) else None


def _stored_parameters(path: Path) -> int:
    return sum(math.prod(shape) for shape in stored_shapes(path).values())
