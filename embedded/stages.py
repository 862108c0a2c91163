"""What the commands that train the embedded models share: options, the folder they write, the record they keep."""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from embedded.quality import Quality

log = logging.getLogger(__name__)

State = Annotated[Path | None, typer.Option(help="Folder of intermediate results; default OUT-state.")]
Count = Annotated[int, typer.Option(min=1)]
Images = Annotated[int, typer.Option(min=1, help="Scenes in the cache of latents.")]
Peak = Annotated[float, typer.Option(help="Largest learning rate of the denoiser.")]
Every = Annotated[int, typer.Option(min=1, help="Denoiser steps between saved states and snapshots.")]
Seed = Annotated[int, typer.Option()]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads; two were slower than one here.")]


def begin(out: Path, state: Path | None, threads: int) -> Path:
    """The folder of intermediate results, which is there afterwards."""
    import torch

    torch.set_num_threads(threads)
    folder = state or out.with_name(out.name + "-state")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def replaced(out: Path) -> Iterator[Path]:
    """A folder beside `out` to write into, which takes its place at the end: complete or absent, never half."""
    aside = out.with_name(out.name + "-new")
    shutil.rmtree(aside, ignore_errors=True)
    yield aside
    shutil.rmtree(out, ignore_errors=True)
    aside.rename(out)


def publish(state: Path, out: Path, trained: str) -> dict[str, Any]:
    """Copy the last snapshot to `out`; steps and loss curve of the state file `trained`.

    Both are read at once: a snapshot can be finished while the training goes on.
    """
    import torch

    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(state / "snapshot", out)
    found = torch.load(state / trained, weights_only=True, map_location="cpu")
    return {"steps": found["step"], "curve": found["curve"]}


def write_record(out: Path, settings: Mapping[str, Any], quality: "Quality", curves: Mapping[str, Any]) -> None:
    """Write `training.json`: settings, libraries, what was measured and the curves of the stages."""
    from embedded.quality import library_versions

    record = {"settings": settings, "libraries": library_versions(), "quality": quality.to_json(), "log": curves}
    (out / "training.json").write_text(json.dumps(record) + "\n")
    for name, value in quality.measured.items():
        log.info("%s: %s", name, value)
    for name in quality.failures():
        log.error("gate missed: %s", name)


def end(out: Path, stages: Sequence[StrEnum], passed: bool) -> None:
    """Say what was done.

    Raises:
        typer.Exit: a quality gate failed.
    """
    if not passed:
        typer.echo(f"a quality gate failed: see {out / 'training.json'}", err=True)
        raise typer.Exit(1)
    typer.echo(f"done: {', '.join(stages)}")
