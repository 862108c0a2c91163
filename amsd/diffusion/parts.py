"""The networks of a pipeline folder, each loaded so that every parameter comes from its file and none is left over."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from amsd.diffusion.families import family_class
from amsd.diffusion.families.fit import require_parts, require_vocabularies
from amsd.diffusion.families.single_file import stored_shapes
from amsd.diffusion.folder import Folder, Part
from amsd.errors import UsageError
from amsd.reading import audit, reading

_HARMLESS = (".position_ids", "logit_scale")
"""Ends of names that older files store beside their weights: buffers that are computed, CLIP's training temperature."""
_OTHER_HALF = ("vision_model.", "visual_projection.", "text_projection.")
"""What a file of the whole CLIP holds beside its text encoder."""


def load_pipeline(folder: Folder, what: str) -> Any:
    """The pipeline, on the CPU in float32, without safety checker.

    Raises:
        UsageError: a part cannot be read, or its file and its configuration disagree; the file is named.
    """
    import diffusers

    import amsd.diffusion.scheduler  # noqa: F401  # diffusers takes classes from modules that are imported already

    networks = {part.name: load_network(part, what) for part in folder.parts.values() if part.weights}
    pipeline_class = getattr(diffusers, folder.pipeline_class)
    with reading(what, folder.path):
        return pipeline_class.from_pretrained(
            folder.path,
            local_files_only=True,
            **networks,
            **absent(pipeline_class, folder.index),
            **dict.fromkeys(folder.left_out),
        )


def absent(pipeline_class: Any, index: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that leave out the parts that draw no picture."""
    import inspect

    names = ("safety_checker", "feature_extractor", "image_encoder")
    left_out: dict[str, Any] = {name: None for name in names if name in index}
    if "requires_safety_checker" in inspect.signature(pipeline_class).parameters:
        left_out |= {"safety_checker": None, "requires_safety_checker": False}
    return left_out


def load_network(part: Part, what: str) -> Any:
    """One network, on the CPU in float32.

    Raises:
        UsageError: its file and its configuration disagree, or the library cannot read it.
    """
    from importlib import import_module

    import torch

    found = getattr(import_module(part.library), part.class_name, None)
    if found is None:
        raise UsageError(
            f"{what}: {part.library} has no class {part.class_name} ({part.folder}); a newer version may have it."
        )
    place = part.weights[0] if len(part.weights) == 1 else part.folder
    # diffusers raises for other shapes, transformers reports them where it is allowed to.
    lenient = {"ignore_mismatched_sizes": True} if part.library == "transformers" else {}
    with reading(what, place, "The file is damaged or belongs to another configuration."):
        network, report = found.from_pretrained(
            str(part.folder), dtype=torch.float32, variant=part.variant, local_files_only=True,
            output_loading_info=True, **lenient,
        )  # fmt: skip
    left_over = [key for key in report["unexpected_keys"] if not _harmless(key, part.class_name)]
    mismatched = [key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]]
    audit(
        {"missing": report["missing_keys"], "left over": left_over, "of another shape": mismatched}, f"{what}: {place}"
    )
    return network


def require_sound(folder: Folder, what: str) -> None:
    """Check a folder's parts against each other from their configurations and the headers of their files.

    Raises:
        UsageError: a configuration describes another number of parameters than its file holds, or parts do not fit.
    """
    for part in folder.parts.values():
        if part.weights and part.library == "diffusers" and all(file.suffix == ".safetensors" for file in part.weights):
            described = sum(value.numel() for value in on_meta(part, what).state_dict().values())
            stored = sum(math.prod(shape) for file in part.weights for shape in stored_shapes(file, what).values())
            if stored != described:
                raise UsageError(
                    f"{what}: {part.folder} holds {stored:,} parameters; its configuration describes {described:,}. "
                    "The file is incomplete, or belongs to another configuration."
                )
    configs = {part.name: part.config for part in folder.parts.values() if part.config}
    tokenizers = [part for part in folder.parts.values() if "Tokenizer" in part.class_name]
    require_fit(folder.pipeline_class, configs, {part.name: _vocabulary(part, what) for part in tokenizers}, what)


def on_meta(part: Part, what: str) -> Any:
    """A diffusers network without storage, for its parameters and shapes.

    Raises:
        UsageError: diffusers has no such class, or cannot read its configuration.
    """
    import diffusers
    import torch

    with reading(what, part.folder / "config.json"), torch.device("meta"):
        return getattr(diffusers, part.class_name).from_config(dict(part.config))


def _vocabulary(part: Part, what: str) -> int:
    """Number of tokens of a tokenizer."""
    from importlib import import_module

    with reading(what, part.folder):
        return len(getattr(import_module(part.library), part.class_name).from_pretrained(str(part.folder)))


def _harmless(key: str, class_name: str) -> bool:
    if key.endswith(_HARMLESS):
        return True
    return class_name.startswith("CLIPText") and key.startswith(_OTHER_HALF)


def require_fit(
    pipeline_class: str, configs: Mapping[str, Mapping[str, Any]], vocabularies: Mapping[str, int], what: str
) -> None:
    """Check that the parts of a pipeline were made for each other.

    Args:
        pipeline_class: class of the pipeline.
        configs: configuration of each network and of the scheduler by its name in the pipeline.
        vocabularies: number of tokens of each tokenizer by its name in the pipeline.
        what: whose parts they are, for messages.

    Raises:
        UsageError: channels, widths or vocabularies disagree.
    """
    family = family_class(pipeline_class)
    require_parts(configs, (family.denoiser_name, "vae", "scheduler"), what)
    require_vocabularies(configs, vocabularies, what)
    family.require_fit(configs, what)
