"""Single-file checkpoints in the original (LDM) layout, read with a configuration from elsewhere.

Such a file holds weights only. The networks' configurations, the tokenizer and the scheduler come from `model.config`:
a diffusers folder or hub repository of the same architecture, whose own weights are not read.
"""

from __future__ import annotations

import logging
import math
import pickle
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from amsd.diffusion.families.fit import scheduler_config
from amsd.diffusion.families.layout import (
    TEXT,
    UNET,
    VAE,
    Shapes,
    configuration_of,
    declared_prediction,
    require_layout,
)
from amsd.diffusion.finite import require_finite_file
from amsd.errors import UsageError
from amsd.reading import is_safetensors, read_json, reason_of, require_whole

_LOG = logging.getLogger(__name__)

_NO_PICKLE = (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, AssertionError, struct.error)
"""What torch.load raises besides its own errors when bytes that are no pickle happen to be opcodes."""


def stored_shapes(file: Path, what: str | None = None) -> Shapes:
    """Names and shapes of the tensors in a checkpoint; of `.safetensors` only the header is read.

    `what` says whose file it is, for messages; unset: it is `model.pretrained` itself.

    Raises:
        UsageError: the file is damaged, holds no tensors by name, is a `.ckpt` with more than tensors, or is
            `model.pretrained` and of a family whose single files are not read.
    """
    from safetensors import SafetensorError, safe_open

    require_whole(file, what or f"model.pretrained = {str(file)!r} cannot be read as a checkpoint")
    try:
        if is_safetensors(file):
            with safe_open(file, framework="pt") as stream:
                slices = {key: stream.get_slice(key) for key in stream.keys()}  # noqa: SIM118
                shapes = {key: tuple(each.get_shape()) for key, each in slices.items()}
                integers = [key for key, each in slices.items() if each.get_dtype() in ("I8", "U8")]
        else:
            tensors = tensors_of(file)
            shapes = {key: tuple(value.shape) for key, value in tensors.items()}
            integers = [key for key, value in tensors.items() if str(value.dtype) in ("torch.int8", "torch.uint8")]
        _require_plain([key for key in integers if len(shapes[key]) > 1])
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        if what is None:
            raise UsageError(unreadable(file, error)) from error
        pickled = (
            " It is a pickle; use the .safetensors file of the same model." if file.suffix.lower() == ".bin" else ""
        )
        raise UsageError(f"{what}: {file} cannot be read: {reason_of(error)}{pickled}") from error
    if what is None:
        require_layout(file, shapes)
    return shapes


def _require_plain(integers: Sequence[str]) -> None:
    """Refuse matrices of integers: without their scales they are not the weights.

    Raises:
        ValueError: there are some.
    """
    if integers:
        raise ValueError(
            f"{len(integers)} of its matrices are 8-bit integers ({integers[0]}), so the model is quantized; amsd "
            "reads plain weights. Use the file of the model that is not quantized"
        )


def unreadable(file: Path, error: BaseException) -> str:
    """Why a checkpoint cannot be read, with the way out where it is a pickle of more than tensors."""
    text = f"model.pretrained = {str(file)!r} cannot be read as a checkpoint"
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, pickle.UnpicklingError):
        cause = cause.__cause__ or cause.__context__
    if cause is None or file.suffix.lower() != ".ckpt":
        return f"{text}: {error}"
    return (
        f"{text}: a .ckpt is a pickle, of which amsd reads tensors only (weights_only=True), because anything else in "
        "one can run code; this one holds more, or is damaged. Use the .safetensors file of the same model. If you "
        'trust this file, convert it once: python -c "import torch; from safetensors.torch import save_file; s = '
        f"torch.load('{file.name}', map_location='cpu', weights_only=False)['state_dict']; "
        "save_file({k: v.contiguous() for k, v in s.items() if hasattr(v, 'shape')}, "
        f"'{file.stem}.safetensors')\""
    )


def default_configuration(file: Path) -> str:
    """Hub repository with the configuration of the file's family.

    Raises:
        UsageError: the file is unreadable, or its tensors do not tell the configuration.
    """
    return configuration_of(file, stored_shapes(file))


def load_single_file(file: Path, configuration: Path) -> Any:
    """The pipeline of a checkpoint, on the CPU in float32, without safety checker.

    Args:
        file: `.safetensors`, or a `.ckpt` that holds tensors only.
        configuration: diffusers folder with the networks' configurations, the tokenizer and the scheduler.

    Raises:
        UsageError: the file is unreadable, the configuration is of another family, or the file does not fit it.
    """
    import diffusers
    import torch
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    shapes = stored_shapes(file)  # what is no checkpoint fails in diffusers in too many ways to tell from a misfit
    families = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
    what = f"model.config = {str(configuration)!r}"
    family = read_json(configuration / "model_index.json", what).get("_class_name")
    if family not in families:
        raise UsageError(f"{what} is of a {family}; a single file is read as one of {', '.join(families)}.")
    scheduler_config(configuration / "scheduler" / "scheduler_config.json", what)
    absent = {"safety_checker": None, "requires_safety_checker": False} if family == families[0] else {}
    try:
        with _plain_suffix(file) as readable:
            pipeline = getattr(diffusers, family).from_single_file(
                str(readable), config=str(configuration), dtype=torch.float32, local_files_only=True,
                feature_extractor=None, image_encoder=None, **absent,
            )  # fmt: skip
    except (OSError, pickle.UnpicklingError) as error:
        raise UsageError(unreadable(file, error)) from error
    except (
        ValueError, TypeError, KeyError, RuntimeError, AttributeError, IndexError, SingleFileComponentError
    ) as error:  # fmt: skip
        raise UsageError(_misfit(file, configuration, reason_of(error))) from error
    for name, network in pipeline.components.items():
        empty = [key for key, value in _named_tensors(network) if value.device.type == "meta"]
        if empty:
            raise UsageError(_misfit(file, configuration, f"{len(empty)} weights of {name} are missing: {empty[0]}"))
        require_finite_file(_named_tensors(network), f"model.pretrained = {str(file)!r}: {name}")
    _require_everything(pipeline, shapes, file, configuration)
    declare(pipeline, file, shapes)
    return pipeline


@contextmanager
def _plain_suffix(file: Path) -> Iterator[Path]:
    """The file, or inside, a link to it with a suffix that diffusers knows: it knows none in capitals."""
    if file.suffix == file.suffix.lower():
        yield file
        return
    with TemporaryDirectory() as folder:
        link = Path(folder) / f"{file.stem}{file.suffix.lower()}"
        link.symlink_to(file.resolve())
        yield link


def _require_everything(pipeline: Any, shapes: Shapes, file: Path, configuration: Path) -> None:
    """Check that no weight of the file was left out: as many numbers are in the networks as in the file.

    Raises:
        UsageError: the file holds more than the networks of the configuration take.
    """
    encoders = [name for name in ("text_encoder", "text_encoder_2") if pipeline.components.get(name) is not None]
    prefixes = {"unet": (UNET,), "vae": (VAE,)}
    if len(encoders) == 1:
        prefixes["text_encoder"] = (TEXT[0],)
    else:
        prefixes |= {name: (f"{TEXT[1]}embedders.{number}.",) for number, name in enumerate(encoders)}
    for name, prefix in prefixes.items():
        network = pipeline.components[name]
        held = sum(parameter.numel() for _, parameter in _named_tensors(network))
        layers = getattr(network.config, "num_hidden_layers", None)
        stored = sum(
            math.prod(shape) for key, shape in shapes.items() if key.startswith(prefix) and not _spare(key, layers)
        )
        projection = getattr(network, "text_projection", None)
        if stored - held not in ((0, -projection.weight.numel()) if projection is not None else (0,)):
            raise UsageError(
                _misfit(
                    file, configuration, f"it holds {stored:,} parameters of {name}, whose configuration takes {held:,}"
                )
            )


def _spare(key: str, layers: int | None) -> bool:
    """Whether a tensor of a text encoder is not a weight that diffusers reads: buffers, projections, the last layer.

    Stable Diffusion 2 reads the layer before the last of OpenCLIP's network.
    """
    if key.endswith(("position_ids", "logit_scale", "text_projection")):
        return True
    return layers is not None and f".resblocks.{layers}." in key


def declare(pipeline: Any, file: Path, shapes: Shapes) -> None:
    """Obey what a file says of its own prediction and noise table, which its configuration cannot know.

    Files that predict velocity carry an empty tensor `v_pred` (and `ztsnr`), or say so in their metadata
    (`modelspec.prediction_type`).
    """
    prediction = declared_prediction(file, shapes)
    scheduler = pipeline.scheduler
    changes: dict[str, Any] = {}
    if prediction is not None and scheduler.config.get("prediction_type", "epsilon") != prediction:
        changes["prediction_type"] = prediction
    if "ztsnr" in shapes and not scheduler.config.get("rescale_betas_zero_snr", False):
        changes["rescale_betas_zero_snr"] = True
    if changes:
        _LOG.warning("%s declares %s and its configuration says otherwise. amsd follows the file.", file, changes)
        pipeline.scheduler = type(scheduler).from_config(scheduler.config, **changes)


def _named_tensors(part: Any) -> list[tuple[str, Any]]:
    from torch import nn

    return [*part.named_parameters()] if isinstance(part, nn.Module) else []


def _misfit(file: Path, configuration: Path, reason: str) -> str:
    return (
        f"model.pretrained = {str(file)!r} cannot be read as a checkpoint with the configuration in "
        f"{configuration}: {reason}. Set model.config to a diffusers folder or hub id of the same architecture."
    )


def tensors_of(file: Path) -> Mapping[str, Any]:
    """The tensors of a `.ckpt`, mapped from disk where its format allows.

    Raises:
        ValueError: it is no pickle, or holds no tensors by name.
        OSError, RuntimeError, EOFError, UnpicklingError: torch.load's own.
    """
    import torch

    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except _NO_PICKLE as error:
        reason = f"it is damaged, or not in PyTorch's file format ({type(error).__name__}: {error})"
        raise ValueError(reason) from error
    while isinstance(content, Mapping) and "state_dict" in content:
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise ValueError(f"it holds a {type(content).__name__}, not a dictionary of tensors by name")
    found = {key: each for key, each in content.items() if isinstance(key, str) and isinstance(each, torch.Tensor)}
    if not found:
        raise ValueError("its dictionary holds no tensors by name")
    return found
