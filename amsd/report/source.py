"""The way from a folder or a storage to its report."""

from __future__ import annotations

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
        raise UsageError(f"{source}: no such folder; give a run directory, a sweep directory or a storage URL")
    if is_run(path):
        report(f"reading {source}", 0, 0)
        return run_story(path)
    from amsd.report.sweep_story import sweep_story

    return sweep_story(source, report)


def write_report(source: Path | str, file: Path | str | None = None, report: Report = silent) -> Path:
    """Write the report of a run or a sweep as one self-contained HTML page; unset: `report.html` beside the results.

    Raises:
        UsageError: there is no run and no sweep.
    """
    from amsd.report.page import write_page

    story = read_story(source, report)
    report("drawing the page", 0, 0)
    return write_page(story, Path(file) if file is not None else story.path / "report.html")
