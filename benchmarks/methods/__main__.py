"""All methods at equal work on the embedded model, and the page that reports them: `python benchmarks/methods OUT`.

Every run is an ordinary `amsd` training in OUT/<method>/lr-<rate>/seed-<s>, skipped where it is finished: the command
can be stopped and repeated. First each method's learning rate is chosen by a sweep of equal size on seed 0, then the
other seeds are run. `docs/methods.md` and its plots are rewritten from what is there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from page import write_page
from results import chosen_rate
from runs import METHODS, RATES, run_missing


def main(
    out: Annotated[Path, typer.Argument(help="Folder for the runs.")],
    only: Annotated[list[str] | None, typer.Option(help="Methods to run; unset: all.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each method at its chosen learning rate.")] = 3,
    page: Annotated[Path, typer.Option(help="Page to write.")] = Path("docs/methods.md"),
    train: Annotated[bool, typer.Option(help="Whether to run what is missing.")] = True,
    write: Annotated[bool, typer.Option(help="Whether to write the page.")] = True,
) -> None:
    """Run what is missing and write the page."""
    wanted = only or [*METHODS]
    if unknown := set(wanted) - {*METHODS}:
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}; known are {', '.join(METHODS)}")
    if train:
        for rate in RATES:
            for name in wanted:
                run_missing(out, name, rate, seed=0)
        for seed in range(1, seeds):
            for name in wanted:
                run_missing(out, name, chosen_rate(out, name), seed)
    if write:
        write_page(out, page)
        typer.echo(page)


if __name__ == "__main__":
    typer.run(main)
