"""The networks of a pipeline folder, each loaded so that every parameter comes from its file and none is left over."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, cast

from amsd.diffusion.families import family_class
from amsd.diffusion.families.fit import require_lengths, require_parts, require_scaling, require_vocabularies
from amsd.diffusion.families.single_file import stored_shapes
from amsd.diffusion.finite import require_finite_file
from amsd.diffusion.folder import UNUSED, Folder, Part
from amsd.errors import UsageError
from amsd.reading import audit, is_safetensors, reading, wrapper_hint

_LOG = logging.getLogger(__name__)
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

    require_all(folder.pipeline_class, folder.parts, what)
    require_classes(folder, what)
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

    left_out: dict[str, Any] = {name: None for name in UNUSED if name in index}
    if "requires_safety_checker" in inspect.signature(pipeline_class).parameters:
        left_out |= {"safety_checker": None, "requires_safety_checker": False}
    return left_out


def require_classes(folder: Folder, what: str) -> None:
    """Check that text encoders are of the class that the pipeline's own call asks, and say where files disagree.

    Raises:
        UsageError: one is of another class.
    """
    import inspect

    import diffusers

    parameters = inspect.signature(getattr(diffusers, folder.pipeline_class).__init__, eval_str=True).parameters
    for part in folder.parts.values():
        if not part.weights or part.name not in parameters:
            continue
        expected, found = parameters[part.name].annotation, _class_of(part, what)
        if part.name.startswith("text_encoder") and isinstance(expected, type) and not issubclass(found, expected):
            raise UsageError(
                f"{what}: its {part.name} is a {part.class_name}, but a {folder.pipeline_class} needs a "
                f"{expected.__name__}. Name that class in model_index.json if the files hold it."
            )
        said = part.config.get("_class_name", part.class_name)
        if part.library == "diffusers" and said != part.class_name:
            _LOG.warning(
                "%s: %s describes a %s, but model_index.json names a %s. amsd follows model_index.json.",
                what, part.folder / "config.json", said, part.class_name,
            )  # fmt: skip


def load_network(part: Part, what: str) -> Any:
    """One network, on the CPU in float32.

    Raises:
        UsageError: its file and its configuration disagree, or the library cannot read it.
    """
    import torch

    found = _class_of(part, what)
    place = part.weights[0] if len(part.weights) == 1 else part.folder
    # diffusers raises for other shapes, transformers reports them where it is allowed to.
    for file in part.weights:
        stored_shapes(file, what)  # of .safetensors only the header is read; of a pickle it says what is wrong
    options: dict[str, Any] = (
        {"dtype": torch.float32, "ignore_mismatched_sizes": True}
        if part.library == "transformers"
        # `torch_dtype` is the name that every version of diffusers has; without a choice it complains of .bin files.
        else {"torch_dtype": torch.float32, "use_safetensors": all(is_safetensors(file) for file in part.weights)}
    )
    with reading(what, place, "The file is damaged or belongs to another configuration."):
        network, report = found.from_pretrained(
            str(part.folder), variant=part.variant, local_files_only=True, output_loading_info=True, **options,
        )  # fmt: skip
    left_over = [key for key in report["unexpected_keys"] if not _harmless(key, part.class_name)]
    if any(key.startswith("vision_model.") for key in report["unexpected_keys"]):
        _LOG.warning("%s: %s holds a whole CLIP model. amsd uses its text encoder.", what, place)
    mismatched = [key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]]
    audit(
        {"missing": report["missing_keys"], "left over": left_over, "of another shape": mismatched}, f"{what}: {place}"
    )
    require_finite_file(network.named_parameters(), f"{what}: {place}")
    return network


def require_sound(folder: Folder, what: str) -> None:
    """Check a folder's parts against each other from their configurations and the headers of their files.

    Raises:
        UsageError: a configuration describes another number of parameters than its file holds, or parts do not fit.
    """
    require_classes(folder, what)
    for part in folder.parts.values():
        if part.weights:
            shapes = {name: shape for file in part.weights for name, shape in stored_shapes(file, what).items()}
            if hint := wrapper_hint(shapes):
                raise UsageError(f"{what}: {part.folder}: {hint}")
            network = _on_paper(part, what)
            described = sum(value.numel() for value in _values(part, network))
            stored = sum(map(math.prod, shapes.values()))
            # Files of transformers may hold more than is read, such as the picture's half of a CLIP.
            if stored < described or (part.library == "diffusers" and stored != described):
                raise UsageError(
                    f"{what}: {part.folder} holds {stored:,} parameters; its configuration describes {described:,}. "
                    "The file is incomplete, or belongs to another configuration."
                )
            if part.library == "transformers":
                audit({"left over": _left_over(shapes, network)}, f"{what}: {part.folder}")
    configs = {part.name: part.config for part in folder.parts.values() if part.config}
    tokenizers = [part for part in folder.parts.values() if "Tokenizer" in part.class_name]
    require_fit(folder.pipeline_class, configs, {part.name: load_plain(part, what) for part in tokenizers}, what)


def _on_paper(part: Part, what: str) -> Any:
    """The network of a part without storage, for its parameters and shapes.

    Raises:
        UsageError: the library has no such class, or cannot read its configuration.
    """
    import torch

    found = _class_of(part, what)
    with reading(what, part.folder / "config.json"), torch.device("meta"):
        if part.library == "diffusers":
            return found.from_config(dict(part.config))
        return found(found.config_class.from_pretrained(str(part.folder)))


def _values(part: Part, network: Any) -> Iterable[Any]:
    """What the file of a part has to hold; transformers leaves out weights that are others' too."""
    values = network.state_dict().values() if part.library == "diffusers" else network.parameters()
    return cast("Iterable[Any]", values)


def _left_over(stored: Iterable[str], network: Any) -> list[str]:
    """Names in a file that a network of transformers would not read; its files may lack or have a first `text_model.`.

    Parts of a larger model that the class itself knows to leave out, such as the decoder of T5, are none.
    """
    known = {form for name in network.state_dict() for form in _forms(name)}
    ignored = [re.compile(each) for each in network._keys_to_ignore_on_load_unexpected or ()]
    return [
        name for name in stored
        if not _harmless(name, type(network).__name__)
        and not known.intersection(_forms(name))
        and not any(each.search(name) for each in ignored)
    ]  # fmt: skip


def _forms(name: str) -> tuple[str, str]:
    """A name, and the name without its first part."""
    return name, name.partition(".")[2]


def load_plain(part: Part, what: str) -> Any:
    """A part without weights: a tokenizer or a scheduler.

    Raises:
        UsageError: the library has no such class, or cannot read its files.
    """
    found = _class_of(part, what)
    with reading(what, part.folder):
        return found.from_pretrained(str(part.folder))


def _class_of(part: Part, what: str) -> Any:
    from importlib import import_module

    found = getattr(import_module(part.library), part.class_name, None)
    if found is None:
        raise UsageError(
            f"{what}: {part.library} has no class {part.class_name} ({part.folder}); a newer version may have it."
        )
    return found


def _harmless(key: str, class_name: str) -> bool:
    if key.endswith(_HARMLESS):
        return True
    return class_name.startswith("CLIPText") and key.startswith(_OTHER_HALF)


def require_all(pipeline_class: str, names: Collection[str], what: str) -> None:
    """Check that a pipeline has every part that draws, and a tokenizer for each text encoder.

    Raises:
        UsageError: one is absent.
    """
    family = family_class(pipeline_class)
    encoders = [name for name in family.text_encoder_names if name in names or name not in family.optional_parts]
    tokenizers = [name.replace("text_encoder", "tokenizer") for name in encoders]
    require_parts(names, (family.denoiser_name, "vae", "scheduler", *encoders, *tokenizers), what)


def require_fit(
    pipeline_class: str, configs: Mapping[str, Mapping[str, Any]], tokenizers: Mapping[str, Any], what: str
) -> None:
    """Check that the parts of a pipeline were made for each other.

    Args:
        pipeline_class: class of the pipeline.
        configs: configuration of each network and of the scheduler by its name in the pipeline.
        tokenizers: each tokenizer by its name in the pipeline.
        what: whose parts they are, for messages.

    Raises:
        UsageError: channels, widths or vocabularies disagree.
    """
    require_all(pipeline_class, [*configs, *tokenizers], what)
    require_vocabularies(configs, {name: len(each) for name, each in tokenizers.items()}, what)
    require_lengths(configs, {name: int(each.model_max_length) for name, each in tokenizers.items()}, what)
    require_scaling(configs, what)
    family_class(pipeline_class).require_fit(configs, what)
