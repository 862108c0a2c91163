"""`amsd sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from amsd.cli.options import ModelArgument, RecipeOption, SetOption
from amsd.cli.outputs import path_option, place_option, require_folder
from amsd.cli.source import resolve_model, with_base
from amsd.ends import keeping
from amsd.errors import UsageError
from amsd.occupied import require_lasting


def sample(
    checkpoint: ModelArgument,
    prompt: Annotated[list[str], typer.Option("--prompt", "-p", help="Prompt; repeatable.")],
    out: Annotated[Path, path_option("--output", "--out", "-o", help="Folder for the pictures.")],
    count: Annotated[int, typer.Option(min=1, max=100_000, help="Images per prompt.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Image j starts from seed + j.")] = 0,
    eta: Annotated[float, typer.Option(min=0.0, help="Noise of the sampler; 0 is none.")] = 0.0,
    guidance_scale: Annotated[
        float | None, typer.Option(min=0.0, help="Guidance scale [default: the recipe's].")
    ] = None,
    negative_prompt: Annotated[
        str | None, typer.Option("--negative-prompt", "-n", help="Negative prompt [default: the recipe's].")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Inference steps [default: the recipe's].")] = None,
    base: Annotated[
        str | None, place_option("--base", metavar="MODEL", help="Model that a LoRA file is added to.")
    ] = None,
    recipe: RecipeOption = None,
    assignments: SetOption = None,
) -> None:
    """Draw pictures; plain diffusers draws the same ones from an exported checkpoint."""
    require_folder(out, "--output")
    require_lasting(out, "--output")
    source = resolve_model(checkpoint, recipe, assignments or [], drawing=True)
    from amsd.tracking.progress import loading, progress

    with loading():
        from amsd.experiment.sample import SampleRequest
        from amsd.experiment.sample import sample as draw

    own = with_base(source.recipe, base)
    if source.model is not None and own.model.pretrained == source.model:
        _require_base(source.model)
    request = SampleRequest(tuple(prompt), count, seed, eta, guidance_scale, steps, negative_prompt)
    kept = f"Pictures that it has written to {out} are whole: run the same command again to draw all of them."
    with progress() as report, keeping(lambda: kept):
        written = draw(own, source.checkpoint, request, out, source.model, report)
    for path in written:
        typer.echo(path)


def _require_base(model: str) -> None:
    """Check that a file is no LoRA, which draws nothing by itself.

    Raises:
        UsageError: it is one.
    """
    from amsd.diffusion.lora_input import find_lora

    if find_lora(model, f"the model {model!r}") is not None:
        raise UsageError(f"{model} is a LoRA: name the model that it is added to with --base (or a --recipe).")
