"""From what a recipe names (`prompts.train`, `prompts.evaluation`) to a `PromptSet`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from amsd.prompts.hub import PREFIX as HUB
from amsd.prompts.hub import read_hub
from amsd.prompts.prompt_set import PromptError, PromptSet
from amsd.prompts.readers import READERS, read_file

EMBEDDED = "embedded:"
#: Prompts that ship with amsd, as folders of the package with `train.txt` and `evaluation.txt`, which share no prompt.
EMBEDDED_SETS = {"embedded:general": "prompts/general", "embedded:shapes": "shapes/prompts"}
Split = Literal["train", "evaluation"]


def load_prompts(source: str | Sequence[str], split: Split = "train") -> PromptSet:
    """Read prompts from a file, the hub, the embedded model, or a list of prompts themselves.

    Args:
        source: a path (text, JSON, JSONL, CSV, Parquet), `hub:ID[:SPLIT[:COLUMN]]`, `hub:ID/FILE`, `embedded:general`,
            `embedded:shapes`, or a sequence of prompts.
        split: which of the two disjoint sets of an `embedded:` name is meant.

    Raises:
        PromptError: the source is absent, malformed or empty; file and line are named.
    """
    if not isinstance(source, str):
        return PromptSet.from_entries("prompts given as a list", source)
    if source.startswith(HUB):
        return PromptSet.from_entries(source, read_hub(source))
    if source.startswith(EMBEDDED):
        return PromptSet.from_entries(f"{source} ({split})", read_file(_embedded(source, split)))
    return PromptSet.from_entries(source, read_file(_find(source)))


def truncated(texts: Sequence[str], tokenizer: Any) -> int:
    """How many of these texts are longer than `tokenizer.model_max_length` tokens, special tokens included."""
    encoded = tokenizer(list(texts), truncation=False, padding=False, verbose=False)["input_ids"]
    return sum(len(tokens) > tokenizer.model_max_length for tokens in encoded)


def _find(source: str) -> Path:
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        raise PromptError(f"{source}: is a folder; name a file ({', '.join(READERS)}).")
    if path.suffix.lower() in READERS:
        raise PromptError(f"{source}: no such prompt file (looked in {path.absolute().parent}).")
    raise PromptError(
        f'{source}: no such prompt file. To give a prompt itself, write a list: ["a photo of a cat"]. '
        f"Other sources: hub:ID, {', '.join(EMBEDDED_SETS)}."
    )


def _embedded(source: str, split: Split) -> Path:
    folder = EMBEDDED_SETS.get(source)
    if folder is None:
        raise PromptError(f"{source}: no such embedded prompts; there are {', '.join(EMBEDDED_SETS)}.")
    return Path(str(resources.files("amsd"))) / folder / f"{split}.txt"
