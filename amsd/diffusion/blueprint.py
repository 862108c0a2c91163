"""What is known of a model without loading a weight: its networks' shapes and sizes, its files, its download."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from amsd.diffusion.activations import kept_bytes
from amsd.diffusion.families import family_class, known_families
from amsd.diffusion.families.base import Family
from amsd.diffusion.families.layout import parameters
from amsd.diffusion.families.published import Published
from amsd.diffusion.families.single_file import declare, default_configuration, stored_shapes
from amsd.diffusion.folder import Folder, configuration_parts, inspect
from amsd.diffusion.loading import EMBEDDED, locate, locate_configuration
from amsd.diffusion.lora_layers import Adaptable, adapted_layers, adapter_parameters
from amsd.diffusion.parts import load_plain, require_fit, require_sound
from amsd.diffusion.quantization import quantizable
from amsd.errors import UsageError
from amsd.hub import Repository
from amsd.reading import read_json, reading
from amsd.recipe import Model
from amsd.recipe.schema import only_path

_NOTHING = "nothing, it is on this machine"
_CACHED = "nothing, it is in the local cache"


@dataclass(frozen=True)
class Blueprint:
    """A model on paper."""

    family: Family
    """Around a denoiser without storage (on torch's `meta` device); it cannot draw."""
    vae_parameters: int
    text_parameters: int
    """Parameters of all text encoders."""
    download: str
    """What has to be downloaded."""
    has_files: bool = False
    """Whether the model's own scheduler and tokenizers were read."""
    weights: tuple[Path, ...] = ()
    """Its files of weights, where they are on this machine."""

    @property
    def parameters(self) -> int:
        """Parameters of the denoiser."""
        return sum(parameter.numel() for parameter in self.family.denoiser.parameters())

    @property
    def buffers(self) -> int:
        """Numbers that the denoiser holds beside its parameters: the table of positions of Stable Diffusion 3."""
        return sum(buffer.numel() for buffer in self.family.denoiser.buffers())

    @property
    def quantizable_parameters(self) -> int:
        """Weights of the denoiser that `model.quantization` makes small."""
        return sum(layer.weight.numel() for layer in quantizable(self.family.denoiser).values())

    @property
    def pixels(self) -> int:
        """Pixels of one picture."""
        return math.prod(self.family.size)

    def lora_parameters(self, rank: int, targets: tuple[str, ...]) -> int:
        """Parameters of low-rank adapters on the layers that `targets` name.

        Raises:
            UsageError: a target names no such layer.
        """
        return sum(adapter_parameters(each, rank) for each in self._adapted(targets))

    def adapted_parameters(self, targets: tuple[str, ...]) -> int:
        """Parameters of the layers themselves."""
        return sum(value.numel() for layer in self._adapted(targets) for value in layer.parameters())

    def _adapted(self, targets: tuple[str, ...]) -> Collection[Adaptable]:
        return adapted_layers(self.family.denoiser, targets).values()

    def forward_flops(self) -> float:
        """Floating-point operations of one forward pass for one picture, counted on shapes alone."""
        return _counted(self.family, self.family.denoiser)

    def kept_bytes(self, dtype: torch.dtype) -> int:
        """Activations of one forward pass for one picture that are kept for the pass back through the network."""
        return kept_bytes(self.family, self.family.denoiser, dtype)


def at_hand(model: Model) -> bool:
    """Whether the files of a recipe's model are on this machine (or should be, because a path is named)."""
    name = model.pretrained
    if model.is_single_file:
        name = model.config or default_configuration(Path(locate(model)))
    if name.startswith(EMBEDDED) or only_path(name) or Path(name).expanduser().exists():
        return True
    cached = _cached(name, model.revision)
    return cached is not None and (
        model.is_single_file or _complete(cached, f"model.pretrained = {name!r}", model) is not None
    )


def blueprint(model: Model) -> Blueprint:
    """The blueprint of a recipe's model.

    Raises:
        UsageError: the model is absent and unknown, or its files are damaged or do not fit together.
    """
    name = model.pretrained
    if model.is_single_file:
        return _of_single_file(model)
    what = f"model.pretrained = {name!r}"
    if name.startswith(EMBEDDED) or Path(name).expanduser().exists():
        return _of_folder(inspect(Path(locate(model)), what, model.variant, model.t5), model, what, _NOTHING)
    cached = _cached(name, model.revision)
    if cached is not None:
        with_weights = _complete(cached, what, model)
        if with_weights is not None:
            return _of_folder(with_weights, model, what, _CACHED)
    for published, family in _published():
        if any(part in name for part in published.names):
            return _of_published(published, family, model)
    locate(model)  # says why it cannot be found
    raise UsageError(f"{what}: download it once; its architecture is not known to amsd.")


def _of_published(published: Published, family: type[Family], model: Model) -> Blueprint:
    left_out = () if model.t5 else family.optional_parts
    counts = {name: part.parameters for name, part in published.parts.items() if name not in left_out}
    texts = sum(count for name, count in counts.items() if name in family.text_encoder_names)
    found = _on_paper(family, published.denoiser, published.vae_scale, (counts["vae"], texts), model, "")
    each = published.stored_bytes if model.variant is None else 2
    # A file holds more than parameters: the table of positions of Stable Diffusion 3.5 is a tenth of its denoiser's.
    stored = sum(value.numel() for value in found.family.denoiser.state_dict().values())
    size = each * (stored + sum(counts.values())) / 1e9
    return replace(found, download=f"about {float(f'{size:.3g}'):g} GB from the hub: {model.pretrained}")


def forward_flops(family: Family) -> float | None:
    """Operations of one forward pass of a loaded family's denoiser for one picture, counted on shapes alone.

    None of a denoiser that is no network of diffusers, made from a configuration.
    """
    import diffusers

    known = getattr(diffusers, getattr(family, "denoiser_class", ""), None)
    if known is None or not isinstance(family.denoiser, known):
        return None
    return _counted(family, _on_meta(type(family), family.denoiser.config))


def _counted(family: Family, denoiser: nn.Module) -> float:
    """Operations of a denoiser on the meta device, as `family` calls it."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        x = torch.empty(1, *family.latent_shape, device="meta")
        family.network(denoiser)(x, torch.zeros(1, device="meta"), family.blank_condition("meta"))
    return float(counter.get_total_flops())


def _on_meta(family: type[Family], config: Any) -> Any:
    """A denoiser without storage."""
    import diffusers

    plain = {key: value for key, value in dict(config).items() if not key.startswith("_")}
    with torch.device("meta"):
        return getattr(diffusers, str(config.get("_class_name", family.denoiser_class))).from_config(plain)


def _of_folder(folder: Folder, model: Model, what: str, download: str) -> Blueprint:
    require_sound(folder, what)
    family = family_class(folder.pipeline_class)
    parts = {name: part for name, part in folder.parts.items() if part.weights}
    denoiser = parts[family.denoiser_name]
    counts = {
        name: sum(_stored(file, what) for file in part.weights)
        for name, part in parts.items() if name != family.denoiser_name
    }  # fmt: skip
    vae = counts.pop("vae")
    plain = {name: load_plain(part, what) for name, part in folder.parts.items() if not part.weights}
    config = {**denoiser.config, "_class_name": denoiser.class_name}  # the index names the class that is loaded
    others = vae, sum(counts.values())
    found = _on_paper(family, config, _vae_scale(parts["vae"].config), others, model, download, plain)
    return replace(found, weights=tuple(file for part in parts.values() for file in part.weights))


def _of_single_file(model: Model) -> Blueprint:
    """Of a checkpoint whose configuration lies elsewhere.

    Raises:
        UsageError: the file's denoiser has another number of parameters than the configuration's.
    """
    file = Path(locate(model))
    shapes = stored_shapes(file)
    stored, *others = parameters(shapes)
    name = model.config or default_configuration(file)
    local = name.startswith(EMBEDDED) or Path(name).expanduser().exists() or _cached(name, model.revision) is not None
    known = next(((p, f) for p, f in _published() if any(part in name for part in p.names)), None)
    if not local and known is not None:
        published, family = known
        download = f"configuration and tokenizer, about 2 MB, from the hub: {name}"
        found = _on_paper(family, published.denoiser, published.vae_scale, others, model, download)
    else:
        folder, what = locate_configuration(model), f"model.config = {name!r}"
        family = family_class(str(read_json(folder / "model_index.json", what).get("_class_name")))
        config = read_json(folder / family.denoiser_name / "config.json", what)
        scale = _vae_scale(read_json(folder / "vae" / "config.json", what))
        plain = {name: load_plain(part, what) for name, part in configuration_parts(folder, what).items()}
        _require_fit(folder, plain, what)
        found = _on_paper(family, config, scale, others, model, _NOTHING, plain)
        declare(found.family.pipeline, file, shapes)
    if found.parameters != stored:
        raise UsageError(
            f"model.pretrained = {model.pretrained!r} holds a {family.denoiser_class} of {stored:,} parameters but its "
            f"configuration describes one of {found.parameters:,}: set model.config to that of the same architecture."
        )
    return replace(found, weights=(file,))


def _require_fit(folder: Path, plain_parts: Mapping[str, Any], what: str) -> None:
    """Check the configurations of a folder, whose weights are not read, against each other.

    Raises:
        UsageError: one is absent, or they disagree.
    """
    index = read_json(folder / "model_index.json", what)
    configs = {path.parent.name: read_json(path, what) for path in sorted(folder.glob("*/config.json"))}
    scheduler = {"scheduler": plain_parts["scheduler"].config} if "scheduler" in plain_parts else {}
    tokenizers = {name: part for name, part in plain_parts.items() if name.startswith("tokenizer")}
    named = {name: config for name, config in configs.items() if name in index}
    require_fit(str(index.get("_class_name")), named | scheduler, tokenizers, what)


def _on_paper(
    family: type[Family],
    denoiser: Any,
    vae_scale: int,
    others: Sequence[int],
    model: Model,
    download: str,
    plain_parts: Mapping[str, Any] | None = None,
) -> Blueprint:
    """Around the denoiser of a configuration.

    `others` are the parameters of the VAE and of the text encoders, `plain_parts` scheduler and tokenizers by name,
    where they were read.
    """
    with reading(f"model.pretrained = {model.pretrained!r}", "its configuration"):
        network = _on_meta(family, denoiser)
    pipeline = SimpleNamespace(
        **{family.denoiser_name: network}, **(plain_parts or {}), vae_scale_factor=vae_scale, default_sample_size=128,
        components={},
    )  # fmt: skip
    vae, texts = others
    return Blueprint(family(pipeline, model), vae, texts, download, plain_parts is not None)


def _published() -> list[tuple[Published, type[Family]]]:
    """Every published model that a family knows by heart."""
    return [(each, family_class(name)) for name in known_families() for each in family_class(name).published]


def _vae_scale(config: Any) -> int:
    """Pixels per latent, as diffusers counts them."""
    return int(2 ** (len(config.get("block_out_channels", (64,))) - 1))


def _cached(name: str, revision: str | None) -> Path | None:
    """The folder of a hub repository whose index has been downloaded."""
    index = Repository(name, revision).cached("model_index.json")
    return None if index is None else index.parent


def _complete(folder: Path, what: str, model: Model) -> Folder | None:
    """A folder of the hub's cache, if every part of it is there."""
    try:
        return inspect(folder, what, model.variant, model.t5)
    except UsageError:
        return None  # a part of a download: the rest follows


def _stored(file: Path, what: str) -> int:
    return sum(math.prod(shape) for shape in stored_shapes(file, what).values())
