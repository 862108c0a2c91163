"""The way from a folder or a storage to its report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from amsd.errors import UsageError
from amsd.report.data import is_run
from amsd.report.story import Story, run_story
from amsd.tracking.progress import Report, silent


def read_story(source: Path | str, report: Report = silent) -> Story:
    """What is shown of a run directory, a sweep's folder or its storage (a URL).

    Raises:
        UsageError: there is no run and no sweep.
    """
    path = Path(source)
    if "://" not in str(source) and not path.is_dir():
        what = "is a file" if path.exists() else "no such folder"
        raise UsageError(f"{source}: {what}; give a run directory, a sweep directory or a storage URL")
    if is_run(path):
        report(f"reading {source}", 0, 0)
        return run_story(path)
    from amsd.report.sweep_story import sweep_story

    return sweep_story(source, report)


def read_stories(sources: Sequence[Path | str], report: Report = silent) -> Story:
    """What is shown of one run or sweep, or of several runs side by side.

    Raises:
        UsageError: there is no run and no sweep; of several sources one is no run.
    """
    if len(sources) == 1:
        return read_story(sources[0], report)
    from amsd.report.comparison import comparison_story

    return comparison_story(sources, report)


def page_of(story: Story) -> Path:
    """Where the page of a story goes if nobody says: beside the results."""
    return story.path / ("comparison.html" if story.kind == "comparison" else "report.html")


def write_report(
    source: Path | str | Sequence[Path | str], file: Path | str | None = None, report: Report = silent
) -> Path:
    """Write the report of a run, of a sweep or of several runs side by side as one self-contained HTML page.

    Unset, `file` is `report.html` beside the results; of several runs `comparison.html` in the folder they share.

    Raises:
        UsageError: there is no run and no sweep; of several sources one is no run.
    """
    from amsd.report.page import write_page

    story = read_stories([source] if isinstance(source, Path | str) else source, report)
    report("drawing the page", 0, 0)
    return write_page(story, Path(file) if file is not None else page_of(story))
