"""`amsd report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from amsd.cli.outputs import require_folder
from amsd.errors import UsageError


def report(
    source: Annotated[
        str, typer.Argument(metavar="RUN_OR_SWEEP", help="A run directory, a sweep directory or a storage URL.")
    ],
    html: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "--html",
            "-o",
            metavar="FILE",
            help="File for the page [default: report.html beside the results].",
        ),
    ] = None,
    wandb: Annotated[
        bool, typer.Option("--wandb", help="Build a W&B Report instead (with --output: as well).")
    ] = False,
) -> None:
    """Show a run or a sweep as one self-contained HTML page, or as a W&B Report."""
    if wandb:
        from amsd.report.wandb_report import require_key

        require_key()
    if html is not None and html.is_dir():
        raise UsageError(f"--output {html} is a folder; give a file, such as {html / 'report.html'}")
    if html is not None:
        require_folder(html.parent, "--output")
    from amsd.report.source import read_story
    from amsd.tracking.progress import progress

    written: list[str] = []
    with progress() as report:
        story = read_story(source, report)
        if html is not None or not wandb:
            from amsd.report.page import write_page

            report("drawing the page", 0, 0)
            written.append(_shown(write_page(story, html or story.path / "report.html")))
        if wandb:
            from amsd.report.wandb_report import publish

            report("sending the report to W&B", 0, 0)
            written.append(publish(story))
    for place in written:
        typer.echo(place)


def _shown(path: Path) -> str:
    """A path from where the user is, if it lies there."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
