"""Experiments on the embedded model, and the page that reports them: `python benchmarks/science OUT`.

Every run is an ordinary `amsd` training in OUT/<experiment>/<setting>/seed-<s>, skipped where it is finished; guidance
modes and noise levels are the shipped sweep `cfg-modes` in OUT/cfg-modes. So the command can be stopped and repeated.
`docs/science.md` and its plots are rewritten from what is there.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

sys.path.append(str(Path(__file__).parents[1]))  # what benchmarks share

from experiments import EXPERIMENTS, SWEEP, run_missing, run_sweep
from page import write_page


def main(
    out: Annotated[Path, typer.Argument(help="Folder for the runs.")],
    only: Annotated[list[str] | None, typer.Option(help="Experiments to run; unset: all.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each setting (the sweep file has its own).")] = 3,
    page: Annotated[Path, typer.Option(help="Page to write.")] = Path("docs/science.md"),
    train: Annotated[bool, typer.Option(help="Whether to run what is missing.")] = True,
    write: Annotated[bool, typer.Option(help="Whether to write the page.")] = True,
) -> None:
    """Run what is missing and write the page."""
    wanted = only or [*EXPERIMENTS, SWEEP]
    if unknown := set(wanted) - {*EXPERIMENTS, SWEEP}:
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}; known are {', '.join([*EXPERIMENTS, SWEEP])}")
    if train:
        _run(out, wanted, seeds)
    if write:
        write_page(out, page)
        typer.echo(page)


def _run(out: Path, wanted: list[str], seeds: int) -> None:
    for seed in range(seeds):  # all settings of a seed first: a stopped command leaves comparable runs
        for name in wanted:
            for setting in EXPERIMENTS[name].settings if name != SWEEP else ():
                run_missing(out, name, setting, seed)
    if SWEEP in wanted:
        run_sweep(out)


if __name__ == "__main__":
    typer.run(main)
