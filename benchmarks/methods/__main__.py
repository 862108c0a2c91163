"""All methods at equal work on the embedded model, and the page that reports them: `python benchmarks/methods OUT`.

Every run is an ordinary `amsd` training in OUT/<length>/<method>/lr-<rate>/seed-<s>, skipped where it is finished: the
command can be stopped and repeated. First each method's learning rate is chosen by a sweep of equal size on seed 0,
then the other seeds are run. `docs/methods.md` and its plots are rewritten from what is there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from page import write_page
from results import chosen_rate
from runs import BUDGET, METHODS, RATES, Length, run_missing


def main(
    out: Annotated[Path, typer.Argument(help="Folder for the runs.")],
    only: Annotated[list[str] | None, typer.Option(help="Methods to run; unset: all.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each method at its chosen learning rate.")] = 3,
    budget: Annotated[int, typer.Option(min=1000, help="Network forward-equivalents of a run.")] = BUDGET,
    checkpoints: Annotated[int, typer.Option(min=1, help="Evaluated steps of a run.")] = 4,
    sweep: Annotated[bool, typer.Option(help="Whether each method's learning rate is chosen by a sweep.")] = True,
    seconds: Annotated[bool, typer.Option(help="Whether the machine was idle, so that seconds mean something.")] = True,
    page: Annotated[Path, typer.Option(help="Page to write.")] = Path("docs/methods.md"),
    train: Annotated[bool, typer.Option(help="Whether to run what is missing.")] = True,
    write: Annotated[bool, typer.Option(help="Whether to write the page.")] = True,
) -> None:
    """Run what is missing and write the page."""
    wanted = only or [*METHODS]
    if unknown := set(wanted) - {*METHODS}:
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}; known are {', '.join(METHODS)}")
    length = Length(budget, checkpoints)
    folder = out / length.name
    if train:
        for rate in RATES if sweep else RATES[:1]:
            for name in wanted:
                run_missing(folder, name, rate, 0, length)
        for seed in range(1, seeds):
            for name in wanted:
                run_missing(folder, name, chosen_rate(folder, name), seed, length)
    if write:
        write_page(folder, page, length, seconds)
        typer.echo(page)


if __name__ == "__main__":
    typer.run(main)
