"""One self-contained HTML page: styles, script, figures and pictures inside, nothing fetched from anywhere."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

import amsd
from amsd.files import write_text
from amsd.places import of_code, published_toml
from amsd.report.comparison_tables import final_tables, settings_table
from amsd.report.figures.curves import adjoint_panels, learning_panels, speed_panels
from amsd.report.figures.parallel import parallel_figure
from amsd.report.figures.search import history_figure, slice_panels, timeline_figure
from amsd.report.figures.svg import MARKS
from amsd.report.figures.tradeoff import diversity_figure, kl_figure
from amsd.report.gallery import Gallery, build_gallery
from amsd.report.story import Story
from amsd.report.tables import tables
from amsd.report.winner import headline, standfirst
from amsd.report.words import facts, notices


def write_page(story: Story, file: Path) -> Path:
    """Render the story into `file` (written aside, then renamed) and return its path."""
    write_text(file, render(story))
    return file


def render(story: Story) -> str:
    """The page as text."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    gallery = build_gallery(story)
    page = environment.from_string(_template("page.html")).render(
        story=story,
        style=Markup(_template("page.css")),
        script=Markup(_template("page.js")),
        version=amsd.__version__,
        made=datetime.now(UTC),
        headline=_together(headline(story)),
        standfirst=_together(standfirst(story)),
        facts=facts(story),
        notices=notices(story),
        tradeoffs=_tradeoffs(story),
        panels=learning_panels(story),
        adjoint=adjoint_panels(story),
        speed=speed_panels(story),
        parallel=parallel_figure(story),
        importance=sorted(story.importance.items(), key=lambda pair: -pair[1][0]),
        history=history_figure(story),
        timeline=timeline_figure(story),
        slices=slice_panels(story),
        gallery=gallery,
        reels=_island(gallery if story.kind != "comparison" else None),
        tables=final_tables(story) if story.kind == "comparison" else tables(story),
        legend=story.legend,
        several=story.kind != "run",
        differing=settings_table(story) if story.kind == "comparison" else None,
        shapes=MARKS,
        recipe=_recipe(story),
        svg=Markup,
        breakable=_breakable,
    )
    return of_code(page)  # pages are shared


def _template(name: str) -> str:
    return files("amsd.report").joinpath("templates", name).read_text(encoding="utf-8")


def _tradeoffs(story: Story) -> list[tuple[str, Any]]:
    figures = (
        ("Reward against diversity", diversity_figure(story)),
        ("Reward against distance from the base", kl_figure(story)),
    )
    return [(title, figure) for title, figure in figures if figure is not None]


def _recipe(story: Story) -> str:
    recipe = next((run.recipe for run in story.runs if run.recipe is not None), None)
    return published_toml(recipe) if recipe is not None and story.kind == "run" else ""


def _together(words: str) -> str:
    """A sentence whose lines do not break around an equals or a plus-minus sign."""
    return re.sub(r" ([=±<]) ", "\N{NO-BREAK SPACE}\\1\N{NO-BREAK SPACE}", words)


def _breakable(words: str) -> Markup:
    """A key or a metric's name that a line may break after a dot, slash, underscore or colon. Numbers stay whole."""
    return Markup(re.sub(r"([./_:])(?=[A-Za-z])", r"\1<wbr>", str(escape(of_code(words)))))


def _island(gallery: Gallery | None) -> Markup:
    """The pictures as JSON inside a script element: `<` is escaped, so that no text can end the element."""
    data = None if gallery is None else [asdict(reel) for reel in gallery.reels]
    return Markup(json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"))
