"""From what a recipe names (`prompts.train`, `prompts.evaluation`) to a `PromptSet`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from amsd.hub import PREFIX as HUB
from amsd.prompts.hub import read_hub
from amsd.prompts.prompt_set import PromptError, PromptSet
from amsd.prompts.readers import READERS, read_file

EMBEDDED = "embedded:"
#: Prompts that ship with amsd, as folders of the package with `train.txt` and `evaluation.txt`, which share no prompt.
EMBEDDED_SETS = {"embedded:general": "prompts/general", "embedded:shapes": "shapes/prompts"}
Split = Literal["train", "evaluation"]


def load_prompts(source: str | Sequence[str], split: Split = "train", column: str | None = None) -> PromptSet:
    """Read prompts from a file, the hub, the embedded model, or a list of prompts themselves.

    Args:
        source: a path (text, JSON, JSONL, CSV, TSV, Parquet), `hub:ID[:SPLIT[:COLUMN]]`, `hub:ID/FILE`,
            `embedded:general`, `embedded:shapes`, or a sequence of prompts.
        split: which of the two disjoint sets of an `embedded:` name is meant.
        column: of a table, or key of JSON objects; unset: the first of `readers.KEYS` that is there.

    Raises:
        PromptError: the source is absent, malformed or empty; file and line are named.
    """
    if not isinstance(source, str):
        return PromptSet.from_entries(f"prompts.{split} (a list)", source)
    if source.startswith(HUB):
        return PromptSet.from_entries(source, read_hub(source, column))
    if source.startswith(EMBEDDED):
        return PromptSet.from_entries(f"{source} ({split})", read_file(_embedded(source, split)))
    return PromptSet.from_entries(source, read_file(_find(source), column))


def token_counts(texts: Sequence[str], tokenizer: Any) -> list[int]:
    """Number of tokens of each text, special tokens included."""
    encoded = tokenizer(list(texts), truncation=False, padding=False, verbose=False)["input_ids"]
    return [len(tokens) for tokens in encoded]


def _find(source: str) -> Path:
    try:
        path = Path(source).expanduser()
        is_file, is_folder = path.is_file(), path.is_dir()
    except (OSError, RuntimeError) as error:  # a name that is too long, or a home folder of nobody
        raise PromptError(f"{source[:200]}: cannot be read: {error}") from None
    if is_file:
        return path
    if is_folder:
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
