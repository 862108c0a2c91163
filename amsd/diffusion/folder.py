"""A diffusers folder looked at without loading a weight: its parts, their files, and what is wrong with them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amsd.diffusion.families import family_class, known_families
from amsd.diffusion.families.fit import scheduler_config
from amsd.errors import UsageError
from amsd.reading import read_json, require_whole

INDEX = "model_index.json"
SCHEDULER = "scheduler_config.json"
_WEIGHTS = re.compile(
    r"(?P<base>diffusion_pytorch_model|model|pytorch_model)(\.(?P<variant>\w+))?(-\d+-of-\d+)?(\.(?P<legacy>\w+))?"
    r"\.(?P<suffix>safetensors|bin)"
)
_SHARD = re.compile(r"-\d+-of-\d+")
_OWN = ("amsd", "amsd.diffusion.scheduler")
"""Where pipelines that were saved with amsd's own scheduler look for its class, today and in early versions."""
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts that amsd does not load: they play no role in drawing a picture from a prompt."""
_LORA = "name its base model here, and the LoRA in model.start to begin from it"
_KINDS = {
    "manifest.json": "it is a checkpoint of amsd: `amsd export CHECKPOINT --output FOLDER` makes a pipeline of it",
    "adapter_config.json": f"it holds an adapter of PEFT: {_LORA}",
    "pytorch_lora_weights.safetensors": f"it holds a LoRA: {_LORA}",
    "config.json": "it holds one network: name the folder of the whole pipeline",
}
"""A file in a folder without an index -> what the folder is, and the way out."""
_NETWORKS = "it holds networks but no index: download the whole pipeline"


@dataclass(frozen=True)
class Part:
    """One component of a pipeline folder."""

    name: str
    library: str
    """`diffusers` or `transformers`."""
    class_name: str
    folder: Path
    config: Mapping[str, Any]
    """Its config.json or scheduler_config.json; of tokenizers empty."""
    weights: tuple[Path, ...]
    """Weight files (shards) that are loaded; none of tokenizers and schedulers."""
    variant: str | None
    """Variant of these files."""


@dataclass(frozen=True)
class Folder:
    """A pipeline folder whose files are there and whole."""

    path: Path
    pipeline_class: str
    index: Mapping[str, Any]
    """Its model_index.json."""
    parts: Mapping[str, Part]
    """What is loaded, by name in the pipeline."""
    left_out: tuple[str, ...] = ()
    """Parts that the family can do without and that are not loaded; diffusers has to be told."""


def require_pipeline(path: Path, what: str) -> None:
    """Check that a folder is that of a pipeline.

    Raises:
        UsageError: it has no index; what it seems to be is said.
    """
    if (path / INDEX).is_file():
        return
    networks = {family_class(name).denoiser_name: _NETWORKS for name in known_families()}
    kind = next((f"; {text}" for name, text in (_KINDS | networks).items() if (path / name).exists()), _inside(path))
    raise UsageError(f"{what}: the folder has no {INDEX}, so it is not a diffusers pipeline{kind}.")


def _inside(path: Path) -> str:
    """Where a pipeline lies within a folder that is none: one or two levels below it (as in the hub's cache)."""
    try:
        found = next((index for deep in ("*", "*/*") for index in sorted(path.glob(f"{deep}/{INDEX}"))), None)
        file = next(iter(sorted(path.glob("*.safetensors"))), None)
    except OSError:
        return ""
    if found is not None:
        return f"; there is one in it: {found.parent}"
    return "" if file is None else f"; of the files in it name one: {file}"


def inspect(path: Path, what: str, variant: str | None = None, t5: bool = True) -> Folder:
    """Look at every file of a pipeline folder that will be loaded.

    Args:
        path: folder with `model_index.json`.
        what: whose folder it is, for messages, such as "model.pretrained = 'x'".
        variant: variant of the weight files; parts without it fall back to their plain files, as in diffusers.
        t5: whether the parts that a family can do without are loaded.

    Raises:
        UsageError: a file is absent, no JSON, a pointer, cut off, or of an unknown class; it is named.
    """
    require_pipeline(path, what)
    index = read_json(path / INDEX, what)
    name, families = index.get("_class_name"), known_families()
    if not isinstance(name, str) or name not in families:
        raise UsageError(f"{what}: {path / INDEX} describes a {name}; amsd supports {', '.join(sorted(families))}.")
    optional = family_class(str(name)).optional_parts
    if not t5 and not optional:
        raise UsageError(f"model.t5 = false: a {name} needs all of its text encoders. Remove the key.")
    left_out = () if t5 else optional
    parts = {part.name: part for part in _parts(path, index, what, variant, optional, left_out)}
    if variant is not None and not any(part.variant == variant for part in parts.values()):
        raise UsageError(f"{what} cannot be loaded: {path} has no files of model.variant = {variant!r}.")
    return Folder(path, str(name), index, parts, tuple(part for part in optional if part not in parts))


def _parts(
    path: Path,
    index: Mapping[str, Any],
    what: str,
    variant: str | None = None,
    optional: tuple[str, ...] = (),
    left_out: tuple[str, ...] = (),
) -> Iterator[Part]:
    """The parts that an index names; a message about an `optional` one says how to leave it out."""
    for name, entry in index.items():
        if name.startswith("_") or name in (*UNUSED, *left_out) or not isinstance(entry, list) or entry[:1] == [None]:
            continue
        try:
            yield _part(path, name, entry, what, variant)
        except UsageError as error:
            if name not in optional:
                raise
            raise UsageError(f"{error} Or draw without it: model.t5 = false.") from error


def _part(path: Path, name: str, entry: list[Any], what: str, variant: str | None) -> Part:
    if len(entry) != 2 or not all(isinstance(word, str) for word in entry):
        raise UsageError(
            f"{what}: {path / INDEX} says {entry!r} for {name}; expected a library and a class. Download it again."
        )
    library, class_name = entry
    folder = path / name
    if not folder.is_dir():
        raise UsageError(f"{what}: {path} has no folder {name}/, which its {INDEX} names. Download it again.")
    if library in _OWN and class_name.endswith("Scheduler"):
        library = "diffusers"
    if library not in ("diffusers", "transformers"):
        raise UsageError(
            f"{what}: {path / INDEX} names {library}.{class_name} for {name}: amsd does not "
            "run code that comes with a model. Use a model of diffusers' and transformers' own classes."
        )
    if _is_network(library, class_name):
        config = _network_config(folder, what)
        files, found = _weight_files(folder, what, variant, library)
        return Part(name, library, class_name, folder, config, files, found)
    config = scheduler_config(folder / SCHEDULER, what) if library == "diffusers" else {}
    for file in sorted(folder.iterdir()):
        if file.is_file() and not file.name.startswith(".") and file.name != SCHEDULER:
            read_json(file, what) if file.suffix == ".json" else require_whole(file, what)
    return Part(name, library, class_name, folder, config, (), None)


def configuration_parts(path: Path, what: str) -> dict[str, Part]:
    """The scheduler and the tokenizers of a folder, whose weights are not looked at.

    Raises:
        UsageError: the index or a configuration is absent or damaged.
    """
    index = read_json(path / INDEX, what)
    plain = {
        name: entry
        for name, entry in index.items()
        if name.startswith(("tokenizer", "scheduler")) and isinstance(entry, list)
    }
    return {part.name: part for part in _parts(path, plain, what)}


def network_part(folder: Path, what: str) -> Part:
    """A folder of one diffusers network, as `save_pretrained` writes it.

    Raises:
        UsageError: a file is absent or damaged.
    """
    config = _network_config(folder, what)
    files, variant = _weight_files(folder, what, None, "diffusers")
    return Part(folder.name, "diffusers", str(config.get("_class_name")), folder, config, files, variant)


def _is_network(library: str, class_name: str) -> bool:
    return "Tokenizer" not in class_name and not (library == "diffusers" and class_name.endswith("Scheduler"))


def _network_config(folder: Path, what: str) -> Mapping[str, Any]:
    """The configuration of a network whose weights are plain numbers.

    Raises:
        UsageError: it is absent, damaged, or that of a quantized network.
    """
    config = read_json(folder / "config.json", what)
    if config.get("quantization_config") is not None:
        raise UsageError(
            f"{what}: {folder / 'config.json'} is that of a quantized network, and amsd reads plain weights. Use the "
            'model that is not quantized; model.quantization = "nf4" stores the frozen network in four bits.'
        )
    return config


def _weight_files(folder: Path, what: str, variant: str | None, library: str) -> tuple[tuple[Path, ...], str | None]:
    """The weight files of a part that `library` reads, and their variant."""
    sets: dict[tuple[str | None, str], list[Path]] = {}
    for file in sorted(folder.iterdir()):
        match = _WEIGHTS.fullmatch(file.name)
        if match:
            sets.setdefault((match["variant"] or match["legacy"], match["suffix"]), []).append(file)
    for found in dict.fromkeys((variant, None)):
        for suffix in ("safetensors", "bin"):
            files = sets.get((found, suffix))
            if files:
                files = _whole_or_shards(folder, files, what, library, found)
                for file in files:
                    require_whole(file, what)
                return tuple(files), found
    others = sorted({name for name, _ in sets if name})
    if others:
        raise UsageError(
            f"{what}: {folder} holds only files of the variant {', '.join(map(repr, others))}. "
            f'Set model.variant = "{others[0]}".'
        )
    raise UsageError(f"{what}: {folder} holds no weights (.safetensors or .bin). Download the model again.")


def _whole_or_shards(folder: Path, files: list[Path], what: str, library: str, variant: str | None) -> list[Path]:
    """Of the files of one network those that are read: a whole one, or the shards that an index names.

    Where both are there, diffusers reads the shards and transformers the whole file.

    Raises:
        UsageError: shards without their index, an index that cannot be read, or one of a shard that is not there.
    """
    shards = [file for file in files if _SHARD.search(file.name)]
    whole = [file for file in files if file not in shards]
    if not shards or (whole and library == "transformers"):
        return whole
    base = _SHARD.split(shards[0].name)[0].partition(".")[0]
    index = folder / f"{base}{shards[0].suffix}.index{f'.{variant}' if variant else ''}.json"
    table = read_json(index, what).get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(each, str) for each in table.values()):
        raise UsageError(f"{what}: {index} has no table of files (weight_map). Download it again.")
    lost = sorted(set(table.values()) - {file.name for file in shards})
    if lost:
        raise UsageError(
            f"{what}: {folder} lacks {', '.join(lost[:3])}, which {index.name} names "
            f"({len(lost)} of {len(set(table.values()))} files). Download it again."
        )
    return [file for file in shards if file.name in table.values()]
