"""`amsd export`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from amsd.cli.options import CheckpointArgument, CheckpointRecipeOption
from amsd.cli.outputs import as_argument, path_option, place_option, require_folder
from amsd.cli.source import resolve
from amsd.ends import keeping
from amsd.errors import UsageError
from amsd.files import require_vacant
from amsd.occupied import require_lasting


class Style(StrEnum):
    """What `amsd export` writes."""

    diffusers = "diffusers"
    kohya = "kohya"


def export(
    checkpoint: CheckpointArgument,
    to: Annotated[Path, path_option("--output", "--to", "-o", help="New folder for the pipeline.")],
    style: Annotated[
        Style,
        typer.Option("--format", help="kohya: a LoRA file for ComfyUI, A1111 and InvokeAI instead of a pipeline."),
    ] = Style.diffusers,
    recipe: CheckpointRecipeOption = None,
    push: Annotated[
        str | None, place_option("--push", metavar="OWNER/REPOSITORY", help="Upload the folder to the hub as well.")
    ] = None,
) -> None:
    """Write a diffusers pipeline (and the LoRA file) that plain diffusers loads without amsd, or a kohya LoRA file."""
    require_folder(to, "--output")
    require_lasting(to, "--output")
    require_vacant(to)
    if push is not None:
        from amsd import hub

        hub.require_pushable(push)
    source = resolve(checkpoint, recipe, [])
    if source.checkpoint is None:
        raise UsageError("The base model needs no export; give a checkpoint or a run directory.")
    from amsd.tracking.progress import loading, progress

    with loading():
        from amsd.experiment.export import export as write

    with progress() as report:
        written = write(source.recipe, source.checkpoint, to, style.value, report)
    typer.echo(written)
    if push is not None:
        with keeping(lambda: f"The export is complete: {to}. Upload it with: hf upload {push} {as_argument(to)}"):
            typer.echo(hub.push(to, push))
