"""`amsd demo`."""

from __future__ import annotations

from typing import Annotated

import typer

from amsd.cli.options import CheckpointArgument, CheckpointRecipeOption
from amsd.cli.source import resolve
from amsd.errors import UsageError


def demo(
    checkpoint: CheckpointArgument,
    recipe: CheckpointRecipeOption = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Prompt to begin with.")] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the page.")] = 7860,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
) -> None:
    """Open a page in the browser: base and fine-tuned model on the same noise (extra `amsd[demo]`)."""
    source = resolve(checkpoint, recipe, [])
    if source.checkpoint is None:
        raise UsageError("A demo compares a checkpoint with its base model; give a checkpoint or a run directory.")
    from amsd.experiment.demo import serve

    serve(source.recipe, source.checkpoint, port, host, prompt, typer.echo)
