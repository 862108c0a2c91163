"""What a single-file checkpoint is, by the names and shapes of its tensors.

The layout is that of Stable Diffusion 1, 2 and XL (LDM); files of other families and of other kinds are named and
refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from amsd.diffusion.families.fit import require_channels
from amsd.errors import UsageError
from amsd.reading import is_safetensors, wrapper_hint

Shapes = Mapping[str, tuple[int, ...]]
"""Shape of each tensor of a file by its name."""

UNET = "model.diffusion_model."
VAE = "first_stage_model."
TEXT = ("cond_stage_model.", "conditioner.")

_SDXL = "conditioner.embedders.1.model.ln_final.weight"
_SD2 = "cond_stage_model.model.ln_final.weight"
_SD1 = "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight"
_CONFIGURATIONS = {
    _SD1: "stable-diffusion-v1-5/stable-diffusion-v1-5",
    _SDXL: "stabilityai/stable-diffusion-xl-base-1.0",
}
"""A tensor that only this family's files have -> hub repository with its configuration."""

_OTHER_FAMILIES = {"joint_blocks.0.": "Stable Diffusion 3", "double_blocks.0.": "FLUX"}
"""Part of a tensor's name that only files of this family have."""

_NO_MODELS = {
    "emb_params": "a textual inversion", "string_to_param": "a textual inversion", "clip_l": "a textual inversion",
    "control_model.": "a ControlNet", "controlnet_cond_embedding.": "a ControlNet", "lora_": "a LoRA",
    "_lora": "a LoRA", "hada_w1": "a LyCORIS adapter", "lokr_w1": "a LyCORIS adapter",
}  # fmt: skip
"""Part of a tensor's name that only such a file has."""
_BESIDE = {
    "a LoRA": "Name its base model here; training begins from a LoRA by model.start, and `amsd sample LORA --base "
    "MODEL` draws with it."
}
_OF_NO_USE = "amsd trains and draws with whole models only: name one."

_WHOLE = "Use a file with all networks in it (UNet, VAE and text encoders), or a diffusers folder of the model."
_NETWORKS = {"UNet": (UNET,), "VAE": (VAE,), "text encoder": TEXT}
"""What a checkpoint holds, and how the names of its tensors begin."""


def require_layout(file: Path, shapes: Shapes) -> None:
    """Refuse a file that is no whole checkpoint of Stable Diffusion 1, 2 or XL.

    Raises:
        UsageError: it is of another family, no model at all, or lacks a network; the way out is said.
    """
    what = f"model.pretrained = {str(file)!r}"
    kind = next((kind for part, kind in _NO_MODELS.items() if any(part in key for key in shapes)), None)
    for part, family in _OTHER_FAMILIES.items():
        if any(part in key for key in shapes) and kind != "a LoRA":
            raise UsageError(
                f"{what} is a {family} checkpoint. amsd reads single files of Stable "
                f"Diffusion 1.x, 2.x and XL only: name the diffusers folder or the hub id of the {family} model."
            )
    lacking = [name for name, prefixes in _NETWORKS.items() if not any(key.startswith(prefixes) for key in shapes)]
    if not lacking:
        _require_text_to_image(shapes, what)
        return
    if kind is not None and len(lacking) == len(_NETWORKS):
        raise UsageError(f"{what} is {kind} and not a model. {_BESIDE.get(kind, _OF_NO_USE)}")
    raise UsageError(
        f"{what} cannot be read as a checkpoint of Stable Diffusion 1.x, 2.x or XL in the original layout: it has no "
        f"{' and no '.join(lacking)} (tensors {', '.join(f'{_NETWORKS[name][0]}*' for name in lacking)}). "
        f"{wrapper_hint(shapes) or _WHOLE}"
    )


def _require_text_to_image(shapes: Shapes, what: str) -> None:
    """Refuse a UNet that reads more than the latents of its VAE, such as one for inpainting.

    Raises:
        UsageError: it does.
    """
    takes, makes = (shapes.get(name) for name in (f"{UNET}input_blocks.0.0.weight", f"{VAE}decoder.conv_in.weight"))
    if takes is not None and makes is not None and len(takes) > 1 and len(makes) > 1:
        require_channels(takes[1], makes[1], what)


def configuration_of(file: Path, shapes: Shapes) -> str:
    """Hub repository with the configuration of the family of a file with these tensors.

    Raises:
        UsageError: they do not tell it.
    """
    for key, repository in _CONFIGURATIONS.items():
        if key in shapes:
            return repository
    text = f"model.pretrained = {str(file)!r}: "
    if _SD2 in shapes:
        raise UsageError(
            f"{text}a Stable Diffusion 2 file does not say whether it predicts noise (512 px) or velocity (768 px). "
            "Set model.config to a diffusers folder or hub id of the same model; its weights are not read."
        )
    raise UsageError(
        f"{text}cannot be read as a checkpoint of Stable Diffusion 1.x, 2.x or XL in the original layout: it has "
        f"other text encoders ({_SD1} is not in it). {_WHOLE}"
    )


def parameters(shapes: Shapes) -> tuple[int, int, int]:
    """Number of parameters of the UNet, of the VAE and of the text encoders."""
    counts = {key: math.prod(shape) for key, shape in shapes.items()}
    unet, vae, others = (
        sum(count for key, count in counts.items() if key.startswith(prefix)) for prefix in (UNET, VAE, (VAE, *TEXT))
    )
    return unet, vae, others - vae


def declared_prediction(file: Path, shapes: Shapes) -> str | None:
    """What a file says that its network predicts, `epsilon` or `v_prediction`; None if it does not say."""
    from safetensors import safe_open

    if "v_pred" in shapes:
        return "v_prediction"
    if not is_safetensors(file):
        return None
    with safe_open(file, framework="pt") as stream:
        said = (stream.metadata() or {}).get("modelspec.prediction_type", "")
    return {"v": "v_prediction", "v_prediction": "v_prediction", "epsilon": "epsilon"}.get(said)
