"""`amsd report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from amsd.cli.outputs import path_option, place_argument, require_file
from amsd.errors import UsageError


def report(
    sources: Annotated[
        list[str],
        place_argument(
            "RUN_OR_SWEEP",
            "A run directory, a sweep directory or a storage URL. Several run directories are compared.",
        ),
    ],
    html: Annotated[
        Path | None,
        path_option(
            "--output",
            "--html",
            "-o",
            metavar="FILE",
            help="File for the page [default: report.html beside the results, comparison.html for several runs].",
        ),
    ] = None,
    wandb: Annotated[
        bool, typer.Option("--wandb", help="Build a W&B Report instead (with --output: as well).")
    ] = False,
) -> None:
    """Show a run, a sweep, or several runs side by side as one self-contained HTML page. Or make a W&B Report."""
    if wandb and len(sources) > 1:
        raise UsageError("--wandb takes one run or one sweep. In W&B, select the runs and open the run comparer.")
    if wandb:
        from amsd.report.wandb_report import require_key

        require_key()
    if html is not None and html.is_dir():
        raise UsageError(f"--output {html} is a folder; give a file, such as {html / 'report.html'}")
    require_file(html, "--output")
    from amsd.report.source import page_of, read_stories
    from amsd.tracking.progress import progress

    written: list[str] = []
    with progress() as report:
        story = read_stories(sources, report)
        if html is not None or not wandb:
            from amsd.report.page import write_page

            page = html or page_of(story)
            require_file(page, "--output")  # its default is known only now
            report("drawing the page", 0, 0)
            written.append(_shown(write_page(story, page)))
        if wandb:
            from amsd.report.wandb_report import publish

            report("sending the report to W&B", 0, 0)
            written.append(publish(story))
    for target in written:
        typer.echo(target)


def _shown(path: Path) -> str:
    """A path from where the user is, if it lies there."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
