"""Prompts from a data set on the hub: `hub:ID[:SPLIT[:COLUMN]]`, or one file of it: `hub:OWNER/NAME/FILE`."""

from __future__ import annotations

from pathlib import Path

from amsd.errors import UsageError
from amsd.hub import PREFIX, Repository, silence
from amsd.prompts.prompt_set import PromptError
from amsd.prompts.readers import READERS, find_column, read_file

_WAY_OUT = "Download it once while online, or name a local prompt file."


def read_hub(source: str, wanted: str | None = None) -> list[str]:
    """Entries of a data set's column, from the local cache where it is there.

    The column is that of the source, else `wanted`, else one that `readers.KEYS` names.

    Raises:
        PromptError: the data set, split or column is absent, or the hub cannot be reached.
    """
    name, split, column = hub_name(source)
    if _is_file(name):
        return read_file(_download(source, name), wanted)
    return _column(source, name, split or "train", column or wanted)


def hub_name(source: str) -> tuple[str, str, str]:
    """Name of the data set or file, split and column that a source names; the last two may be empty.

    Raises:
        PromptError: it cannot be one of the hub.
    """
    name, _, rest = source.removeprefix(PREFIX).partition(":")
    split, _, column = rest.partition(":")
    if not name.strip():
        raise PromptError(f"{source!r} must have the form hub:ID[:SPLIT[:COLUMN]], such as hub:me/name:train:prompt.")
    if _is_file(name):
        if rest:
            raise PromptError(f"{source}: a single file has no split; write hub:{name}")
        return name, "", ""
    if not Path(name).is_dir():
        try:
            Repository(name, kind="dataset").require_name(repr(source))
        except UsageError as error:
            raise PromptError(str(error)) from error
    return name, split, column


def _is_file(name: str) -> bool:
    return Path(name).suffix.lower() in READERS and name.count("/") >= 2


def _download(source: str, name: str) -> Path:
    owner, repository, file = name.split("/", 2)
    try:
        return Repository(f"{owner}/{repository}", kind="dataset").file([file], source, _WAY_OUT)
    except UsageError as error:
        raise PromptError(str(error)) from error


def _column(source: str, name: str, split: str, column: str | None) -> list[str]:
    try:
        import datasets
    except ImportError:
        raise PromptError(f"{source}: hub data sets need: uv pip install 'amsd[data]'") from None
    from datasets.exceptions import DatasetsError

    offline = None if Path(name).is_dir() else silence()
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or offline is not None
    try:
        with Repository(name, kind="dataset").telling():
            table = datasets.load_dataset(name, split=split)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        if offline is not None:
            raise PromptError(f"{source}: is not in the local cache and {offline}. {_WAY_OUT}") from None
        raise PromptError(f"{source}: cannot be loaded: {error}") from None
    finally:
        datasets.config.HF_HUB_OFFLINE = before
    names = list(table.column_names)
    if column is not None and column not in names:
        raise PromptError(f"{source}: has no column {column!r}; there are {', '.join(names)}.")
    chosen = column or names[find_column(names, source)]
    entries = list(table[chosen])
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, str):
            raise PromptError(f"{source}, row {number}: column {chosen!r} holds {entry!r:.60}, which is not a string.")
    return entries
