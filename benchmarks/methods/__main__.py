"""All methods at equal work on both embedded models, and the page that reports them: `python benchmarks/methods OUT`.

Every run is an ordinary `amsd` training that leaves a small result file in OUT; what is there is not run again, so the
command can be stopped and repeated, on several processes (`--processes`) and for a limited time (`--seconds`). First
each method's learning rate is chosen by a sweep of equal size on seed 0, then the other seeds are run. `--add FOLDER`
takes in what another machine has found. `docs/methods.md` and its plots are rewritten from what is there.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

sys.path.append(str(Path(__file__).parents[1]))  # what benchmarks share

from page import write_page
from parts import BUDGET, CURVE, FACTORS, FINE, METHODS, MODELS, TILTS, Contender, Length, time_calls
from pool import Leaderboard, run_all
from results import add


def main(
    out: Annotated[Path, typer.Argument(help="Folder for the results.")],
    only: Annotated[list[str] | None, typer.Option(help="Methods to run; unset: all.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="Models to run, unet or flow; unset: both.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each method at its chosen learning rate.")] = 3,
    budget: Annotated[int, typer.Option(min=1000, help="Network forward-equivalents of a run.")] = BUDGET,
    checkpoints: Annotated[int, typer.Option(min=1, help="Evaluated steps of a run.")] = 3,
    sweep: Annotated[bool, typer.Option(help="Whether each method's learning rate is chosen by a sweep.")] = True,
    fine: Annotated[bool, typer.Option(help="Run nothing but `am` with 50 steps of the sampler, on the UNet.")] = False,
    curve: Annotated[bool, typer.Option(help="Run nothing but `am` and `eam` at other lambdas, on the UNet.")] = False,
    timing: Annotated[bool, typer.Option(help="Only measure what a network call of each method takes.")] = False,
    processes: Annotated[int, typer.Option(min=1, help="Runs at once; give each one thread (OMP_NUM_THREADS=1).")] = 1,
    seconds: Annotated[float | None, typer.Option(min=1, help="Stop after so long; unset: when all is done.")] = None,
    merge: Annotated[list[Path] | None, typer.Option("--add", help="Folder with results of another machine.")] = None,
    page: Annotated[Path, typer.Option(help="Page to write.")] = Path("docs/methods.md"),
    train: Annotated[bool, typer.Option(help="Whether to run what is missing.")] = True,
    write: Annotated[bool, typer.Option(help="Whether to write the page.")] = True,
) -> None:
    """Run what is missing and write the page."""
    wanted, models, length = only or [*METHODS], model or [*MODELS], Length(budget, checkpoints)
    for names, known in ((wanted, METHODS), (models, MODELS)):
        if unknown := set(names) - {*known}:
            raise typer.BadParameter(f"{', '.join(sorted(unknown))}; known are {', '.join(known)}")
    folder = out / length.name
    tilts = [replace(length, tilt=tilt) for tilt in TILTS]
    for other in merge or ():
        added = sum(add(out / each.name, other / each.name) for each in (length, FINE, *tilts))
        typer.echo(f"{added} results added from {other}")
    if train and fine:
        run_all(Leaderboard(out / FINE.name, FINE, ["unet"], ["am"], seeds, FACTORS[:1]), processes, seconds)
    elif train and timing:
        for part in (Contender(name, method, FACTORS[0], 0) for name in models for method in wanted):
            time_calls(part, folder, length)
            typer.echo(f"{part.model}, {part.method}: {part.timing(folder).read_text(encoding='utf-8')}")
    elif train and curve:
        for each in tilts:
            run_all(Leaderboard(out / each.name, each, ["unet"], CURVE, seeds, FACTORS[:1]), processes, seconds)
    elif train:
        run_all(
            Leaderboard(folder, length, models, wanted, seeds, FACTORS if sweep else FACTORS[:1]), processes, seconds
        )
    if write:
        write_page(out, page, length)
        typer.echo(page)


if __name__ == "__main__":
    typer.run(main)
