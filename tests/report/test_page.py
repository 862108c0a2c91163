from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from amsd.cli.report import report
from amsd.errors import UsageError
from amsd.report.page import render
from amsd.report.story import Story, run_story
from amsd.report.tables import tables
from amsd.report.winner import standfirst
from amsd.report.words import notices
from tests.report.synthetic import REWARD, append, recipe, write_run

VOID = {"meta", "link", "img", "input", "br", "wbr", "hr"}


class Checker(HTMLParser):
    """Tags balanced, ids unique, nothing fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.sources: list[str] = []
        self.images = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        self.ids += [values["id"] or ""] if "id" in values else []
        fetched = ("src", "srcset", "data", "action") if tag == "a" else ("src", "href", "srcset", "data", "action")
        self.sources += [values[key] or "" for key in fetched if key in values]
        if tag == "img":
            self.images += 1
            assert values.get("alt")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(params=["run", "sweep"])
def story(request: pytest.FixtureRequest, a_run: Story, a_sweep: Story) -> Story:
    return a_run if request.param == "run" else a_sweep


def test_page_is_one_well_formed_file_that_fetches_nothing(story: Story) -> None:
    page = render(story)
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert len(checker.ids) == len(set(checker.ids))
    assert all(source.startswith(("data:", "#")) for source in checker.sources)
    assert "url(" not in page
    assert "@import" not in page
    assert checker.images > 0
    assert len(page) < 2_000_000
    assert "default-src 'none'" in page


def test_every_word_of_a_user_is_escaped(a_run: Story) -> None:
    page = render(a_run)
    assert a_run.title == "run & <script>"
    assert "run &amp; &lt;script&gt;" in page
    assert "run & <script>" not in page
    assert "fell &lt;b&gt;" in page


def test_pictures_cannot_end_their_script_element(a_run: Story) -> None:
    island = re.search(r'<script type="application/json" id="reels">(.*?)</script>', render(a_run), re.S)
    assert island
    assert "<" not in island[1]
    reels = json.loads(island[1])
    assert reels[0]["steps"] == [10, 20, 30, 40, 50, 60]
    assert all(len(frame) == 6 for frame in reels[0]["frames"])


def test_alarms_come_first(a_run: Story) -> None:
    said = notices(a_run)
    assert next((notice.kind, notice.alarm) for notice in said) == ("reward-hacking", True)
    assert render(a_run).index('class="notice alarm"') < render(a_run).index('id="tradeoff"')


def test_opening_sentence_has_the_result_with_its_uncertainty(a_run: Story) -> None:
    metric = a_run.runs[0].checkpoints[-1].evaluations[a_run.runs[0].settings[0]].metrics[REWARD]
    assert metric.paired is not None
    assert f"{metric.mean:.3f} ±" in standfirst(a_run)
    assert f"+{metric.paired.difference:.3f} ±" in standfirst(a_run)


def test_run_table_has_base_checkpoints_and_every_setting(a_run: Story) -> None:
    found = tables(a_run)
    assert [table.setting for table in found] == list(a_run.settings)
    assert [row.cells[0].text for row in found[0].rows] == ["base", *(f"step {step}" for step in range(10, 61, 10))]
    assert found[0].rows[0].cells[1].below == ()
    assert [line[0] for line in found[0].rows[3].cells[1].below] == ["Δ", "p"]


def test_sweep_table_is_sorted_and_keeps_failures_and_copies(a_sweep: Story) -> None:
    over_seeds, runs = tables(a_sweep)
    rewards = [row.cells[2].sort for row in runs.rows if row.cells[2].sort is not None]
    assert rewards == sorted(rewards, reverse=True)
    assert len(rewards) == 16
    words = " ".join(line for row in runs.rows for line in row.cells[0].below)
    assert "adjoint is not finite at step 4" in words
    assert "same run as trial 2" in words
    assert len(over_seeds.rows) == 8


def test_seed_table_against_an_independent_computation(a_sweep: Story) -> None:
    from scipy.stats import sem, ttest_1samp

    from amsd.report.seeds import by_trial, over_seeds

    group = by_trial(a_sweep)[3]
    metrics = [point.reward for _, point in group]
    found = over_seeds(metrics)
    assert found is not None
    assert found.paired is not None
    means = [metric.mean for metric in metrics]
    differences = [metric.paired.difference for metric in metrics if metric.paired]
    assert found.mean == pytest.approx(sum(means) / len(means))
    assert found.standard_error == pytest.approx(sem(means))
    assert found.paired.p_value == pytest.approx(ttest_1samp(differences, 0).pvalue)


def test_a_run_without_anything_yet_still_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("", encoding="utf-8")
    page = render(run_story(tmp_path))
    assert "No checkpoint has been evaluated yet." in page
    assert "recipe.toml is missing" in page


def test_command_writes_the_page_where_it_is_asked_to(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(report)
    folder = write_run(tmp_path / "run", recipe(), until=12, pictures=False)
    append(folder, {"step": 3, "notice": "offline", "text": "no key"})
    result = CliRunner().invoke(app, [str(folder), "--html", str(tmp_path / "page.html")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert CliRunner().invoke(app, [str(folder)]).exit_code == 0
    assert (folder / "report.html").is_file()
    refused = CliRunner().invoke(app, [str(folder), "--html", str(tmp_path)])
    assert isinstance(refused.exception, UsageError)


def test_room_does_not_import_torch() -> None:
    code = (
        "import sys, amsd.report.page, amsd.report.sweep_story, amsd.report.wandb_report; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
