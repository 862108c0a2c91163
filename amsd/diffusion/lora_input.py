"""LoRA files made by any tool that diffusers reads: put on a pipeline so that nothing of them is left out unnoticed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from amsd import hub
from amsd.diffusion.families.base import Family
from amsd.diffusion.families.lora_names import networks_of
from amsd.diffusion.lora_forms import NO_PLACE, LoraFile, read_lora, tensor_names
from amsd.errors import UsageError
from amsd.reading import is_safetensors, reading, require_whole
from amsd.recipe.schema import only_path

FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
"""Names under which amsd, PEFT and diffusers save a LoRA in a folder."""
_FACTORS = (
    "lora_A",
    "lora_B",
    "lora.down",
    "lora.up",
    "lora_down",
    "lora_up",
    "lora_linear_layer",
    "lora_magnitude_vector",
    "_lora1.",
    "_lora2.",
    ".qkv_lora.",
    ".proj_lora.",
)
"""Parts of names that matrices of a LoRA have; the last four are those of XLabs' tools for FLUX."""
_OTHER_KINDS = (
    ".hada_w", ".lokr_w", ".oft_blocks", ".oft_diag", ".diff_b", ".glora_", ".a1.weight", ".on_input", ".lora_mid.",
    ".w_norm", ".b_norm",
)  # fmt: skip
"""Parts of names that adapters other than LoRA have, in the words of LyCORIS."""
_ADAPTERS = ("lora_unet_", "lora_te", "lora_transformer_", "lycoris_")
"""How tools of kohya's kind begin the names of an adapter's tensors."""
_NAME = "file"
_SUFFIX = ".safetensors"
_DOWNLOAD = "Download it once while online (`hf download OWNER/NAME`), or name a local file."


def lora_file(path: Path, what: str | None = None) -> Path | None:
    """The LoRA file that a path means: itself, or the one in a folder that holds no pipeline; None if there is none.

    Raises:
        UsageError: the file is damaged, or an adapter of another kind; `what` says whose it is.
    """
    if path.is_dir():
        if (path / "model_index.json").is_file():
            return None
        found = next((path / name for name in FILES if (path / name).is_file()), None)
        return None if found is None else lora_file(found, what)
    if not is_safetensors(path) or not path.is_file():
        return None
    require_whole(path, what or "the LoRA")
    names = tensor_names(path)
    _refuse_others(path if what is None else f"{what}: {path}", names)
    return path if any(_is_factor(name) for name in names) else None


def _refuse_others(file: Path | str, names: Sequence[str]) -> None:
    """Refuse adapters of which diffusers would read a part, or nothing.

    Raises:
        UsageError: it is one.
    """
    way_out = "Merge it into its base model with the tool that made it, or use a LoRA."
    if any(name.endswith("dora_scale") for name in names):
        raise UsageError(
            f"{file} is a DoRA in the format of kohya's tools. diffusers ignores its magnitudes (dora_scale), so the "
            f"result would be another model. {way_out}"
        )
    other = any(name.endswith(".diff") or any(part in name for part in _OTHER_KINDS) for name in names)
    unknown = any(name.startswith(_ADAPTERS) for name in names) and not any(map(_is_factor, names))
    if other or unknown:
        raise UsageError(
            f"{file} is a LyCORIS adapter (LoHa, LoKr or the like), which diffusers does not read. {way_out}"
        )


def find_lora(target: str, what: str) -> Path | None:
    """The LoRA file that a name means: a path, a hub id, or `hub:OWNER/REPOSITORY/FILE[@REVISION]`; None if it is none.

    A repository of the hub without a pipeline is looked for in the local cache first, and asked for only then.

    Raises:
        UsageError: a repository holds several files and none is named, or a file is not to be had.
    """
    if target.startswith(hub.PREFIX):
        repository, name = hub.parse_file(target)
        return repository.file([name], what, f"Download it once while online: `hf download {repository.name} {name}`.")
    path = Path(target).expanduser()
    if path.exists() or only_path(target) or target.count("/") != 1 or ":" in target:
        return lora_file(path, what)
    repository = hub.Repository(target)
    if repository.cached("model_index.json", what) is not None:
        return None
    folder = repository.cached_folder()
    known = [] if folder is None else [file.name for file in folder.iterdir()]
    if not any(name.lower().endswith(_SUFFIX) for name in known):
        if hub.silence() is not None:
            return None  # who looks for a pipeline next says that there is no network
        known = repository.names(what, _DOWNLOAD)
    found = None if "model_index.json" in known else _only_lora(known, target, what)
    return None if found is None else repository.file([found], what, _DOWNLOAD)


def _only_lora(names: list[str], repository: str, what: str) -> str | None:
    """The file of a repository that is a LoRA by its name, or its only one; None if it holds no weights at its top."""
    files = [name for name in names if name.lower().endswith(_SUFFIX) and "/" not in name]
    usual = [name for name in FILES if name in files] or (files if len(files) == 1 else [])
    if usual:
        return usual[0]
    if files:
        raise UsageError(
            f"{what}: {repository} holds {len(files)} files: {', '.join(sorted(files)[:5])}. Name one: "
            f"{hub.PREFIX}{repository}/{sorted(files)[0]}"
        )
    return None


def merge(family: Family, file: Path, what: str) -> None:
    """Add a LoRA file to the weights of a pipeline, text encoders included where the file has them.

    Raises:
        UsageError: the file does not fit the model; it is named.
    """
    lora = put_on(family, file, what)
    with reading(what, file):
        family.pipeline.fuse_lora(components=[*lora.layers])
        family.pipeline.unload_lora_weights()


def put_on(family: Family, file: Path, what: str) -> LoraFile:
    """Load a LoRA file as an adapter of a pipeline's networks.

    Raises:
        UsageError: it cannot be read, belongs to another architecture, or a part of it would be left out.
    """
    lora = read_lora(family, file, what)
    with reading(what, file, NO_PLACE):
        for component, network in networks_of(family).items():
            lora.put_on(component, network, _NAME)
    return lora


def _is_factor(name: str) -> bool:
    return any(factor in name for factor in _FACTORS) and not name.endswith(".alpha")
