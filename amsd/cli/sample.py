"""`amsd sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from amsd.cli.options import CheckpointArgument, RecipeOption, SetOption
from amsd.cli.outputs import require_folder
from amsd.cli.source import resolve


def sample(
    checkpoint: CheckpointArgument,
    prompt: Annotated[list[str], typer.Option("--prompt", "-p", help="Prompt; repeatable.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the pictures.")],
    count: Annotated[int, typer.Option(min=1, help="Images per prompt.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Image j starts from seed + j.")] = 0,
    eta: Annotated[float, typer.Option(min=0.0, help="Noise of the sampler; 0 is none.")] = 0.0,
    guidance_scale: Annotated[float | None, typer.Option(min=0.0, help="Unset: the recipe's.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Inference steps; unset: the recipe's.")] = None,
    recipe: RecipeOption = None,
    assignments: SetOption = None,
) -> None:
    """Draw pictures; plain diffusers draws the same ones from an exported checkpoint."""
    require_folder(out, "--out")
    source = resolve(checkpoint, recipe, assignments or [])
    from amsd.experiment.sample import SampleRequest
    from amsd.experiment.sample import sample as draw

    request = SampleRequest(tuple(prompt), count, seed, eta, guidance_scale, steps)
    for path in draw(source.recipe, source.checkpoint, request, out):
        typer.echo(path)
