"""Several runs on one page: what differs, who is ahead, pictures on the same noise."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
from scipy.stats import ttest_ind, ttest_rel
from typer.testing import CliRunner

from amsd.cli.app import app
from amsd.errors import UsageError
from amsd.recipe import load_recipe
from amsd.report.comparison import _brief, comparison_story, differences
from amsd.report.comparison_tables import final_tables
from amsd.report.numbers import p_value
from amsd.report.page import render
from amsd.report.source import write_report
from amsd.report.story import Story
from amsd.report.tables import Cell, ReportTable
from amsd.report.winner import headline, standfirst
from amsd.report.words import facts
from amsd.run_directory import default_output
from tests.report.synthetic import PROMPTS, REWARD, append, recipe, write_run
from tests.report.test_page import Checker

NAMES = ("plain", "lower", "strong-0", "strong-1")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four runs of three settings; the last two differ in their seed."""
    home = tmp_path_factory.mktemp("compared")
    strong = {"method": {"reward_multiplier": 50.0}}
    write_run(home / "plain", recipe(), 0.3, seed=1)
    write_run(home / "lower", recipe(schedule={"eta": 0.7}), 0.2, seed=2)
    for seed in (0, 1):
        write_run(home / f"strong-{seed}", recipe(**strong, training={"seed": seed}), 0.8 + 0.02 * seed, seed=3 + seed)
    return [home / name for name in NAMES]


@pytest.fixture(scope="module")
def story(folders: list[Path]) -> Story:
    return comparison_story(folders)


def rewards(folder: Path) -> list[float]:
    """Rewards of the last checkpoint by prompt, from the file."""
    (file, *_) = sorted((folder / "checkpoints" / "step-000060" / "evaluation").glob("*.json"))
    values: list[float] = json.loads(file.read_text(encoding="utf-8"))["metrics"][REWARD]["per_prompt"]
    return values


def cell(table: ReportTable, row: str, column: str) -> Cell:
    place = table.heads.index(column)
    return next(each.cells[place] for each in table.rows if each.cells[0].text == row)


def test_the_settings_that_differ_are_listed_and_no_others(story: Story) -> None:
    assert {each.key: each.values for each in differences(story)} == {
        "schedule.eta": ("1", "0.7", "1"),
        "method.reward_multiplier": ("25", "25", "50"),
        "training.seed": ("0", "0", "0, 1"),
    }
    common = dict(facts(story))
    assert common["Learning rate"] == "0.0003"
    assert not {"Noise η", "Seed"} & common.keys()
    assert [group.name for group in story.groups] == ["plain", "lower", "strong-0 (2 seeds)"]


def test_single_runs_are_compared_prompt_by_prompt(story: Story, folders: list[Path]) -> None:
    _, against = final_tables(story)
    found = cell(against, "lower", REWARD)
    mine, theirs = rewards(folders[1]), rewards(folders[0])
    gaps = [a - b for a, b in zip(mine, theirs, strict=True)]
    assert found.sort == pytest.approx(fmean(gaps))
    assert f"± {stdev(gaps) / math.sqrt(len(gaps)):.2g}"[:6] in found.text
    p = ttest_rel(mine, theirs).pvalue
    assert found.below == (f"p = {p:.2f}" if p >= 0.01 else f"p = {p:.3f}" if p >= 0.001 else "p < 0.001",)


def test_seeds_are_averaged_and_compared_by_their_means(story: Story, folders: list[Path]) -> None:
    numbers, against = final_tables(story)
    means = [fmean(rewards(folder)) for folder in folders[2:]]
    assert cell(numbers, "strong-0 (2 seeds)", REWARD).sort == pytest.approx(fmean(means))
    found = cell(against, "strong-0 (2 seeds)", REWARD)
    assert found.sort == pytest.approx(fmean(means) - fmean(rewards(folders[0])))
    assert found.below == ("not paired",)


def test_two_settings_of_several_seeds_are_compared_by_welchs_test(folders: list[Path], tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        write_run(
            tmp_path / f"weak-{seed}", recipe(training={"seed": seed}), 0.5 + 0.1 * seed, pictures=False, seed=seed
        )
    weak = [tmp_path / f"weak-{seed}" for seed in (0, 1, 2)]
    story = comparison_story([*weak, *folders[2:]])
    found = cell(final_tables(story)[1], "strong-0 (2 seeds)", REWARD)
    means = [[fmean(rewards(folder)) for folder in group] for group in (folders[2:], weak)]
    p = ttest_ind(*means, equal_var=False).pvalue
    assert found.below == (p_value(p), "over seeds")
    assert found.sort == pytest.approx(fmean(means[0]) - fmean(means[1]))
    assert f"({p_value(p)}) below it" in standfirst(story)


def test_the_page_opens_with_the_winner_and_its_lead(story: Story) -> None:
    assert headline(story).startswith(f"strong-0 (2 seeds) has the highest {REWARD}: ")
    assert "The next best is plain, " in standfirst(story)


def test_a_difference_within_its_error_is_called_no_difference(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [{}, {"method": {"reward_multiplier": 26.0}}]
    made = [
        write_run(tmp_path / str(seed), recipe(**change), 0.3, pictures=False, seed=seed)
        for seed, change in enumerate(changes)
    ]
    assert headline(comparison_story(made)).startswith(f"No certain difference in {REWARD} between ")


def test_the_page_is_well_formed_and_shows_all_models_side_by_side(story: Story) -> None:
    page = render(story)
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert len(set(checker.ids)) == len(checker.ids)
    assert all(source.startswith(("data:", "#")) for source in checker.sources)
    prompts = min(len(PROMPTS), 3)
    assert checker.images == prompts * 4 * 4  # base and three settings, four samples each
    assert len(re.findall(r'class="chip"', page)) == 3
    # reward, diversity, held-out metric: one band for each run
    assert len(re.findall(r'class="band m\d"', page)) == 3 * len(NAMES)
    assert "Difference to plain" in page


def test_runs_under_different_conditions_are_not_paired_and_it_is_said(tmp_path: Path) -> None:
    one = write_run(tmp_path / "a", recipe(), 0.3)
    other = write_run(tmp_path / "b", recipe(evaluation={"eta": [0.5]}), 0.3)
    story = comparison_story([one, other])
    assert "evaluated under different settings" in " ".join(story.gaps)
    assert "not paired" in cell(final_tables(story)[1], "b", REWARD).below
    assert len(re.findall(r'class="side tuned"', render(story))) == 3  # pictures of the first run only


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    made = [write_run(tmp_path / name / "run", recipe(), 0.3, seed=seed) for seed, name in enumerate("ab")]
    story = comparison_story(made)  # the same settings and the same seed: two runs to see beside each other
    assert [entry.label for entry in story.entries] == ["a/run", "b/run"]
    assert [group.name for group in story.groups] == ["a/run", "b/run"]
    assert "The runs have the same settings." in render(story)


def test_names_that_amsd_gave_are_cut_to_what_differs() -> None:
    one = "sd15-am-lambda100-lr3e-06-eta1-cfg7.5-seed0-377a4adeaa33"
    other = "sd15-am-lambda31.6-lr3e-06-eta1-cfg7.5-seed0-b6d42301f2e0"
    assert _brief([one, other, f"{other}-2"]) == ["sd15-am-lambda100", "sd15-am-lambda31.6", "sd15-am-lambda31.6-2"]
    assert _brief([one, one.replace("3e-06", "1e-05")]) == ["sd15-am-lr3e-06", "sd15-am-lr1e-05"]
    assert _brief([one, one.replace("377a4a", "0123ab")]) == [
        "sd15-am-377a4a",
        "sd15-am-0123ab",
    ]  # a key not in the name
    assert _brief([one, f"{one}-2"]) == ["sd15-am", "sd15-am-2"]
    assert _brief(["mine-lr1", "mine-lr2", one]) == ["mine-lr1", "mine-lr2", one]  # names of the user stay
    for seed in (0, 1):
        given = default_output(load_recipe("shapes", [f"training.seed={seed}"]), "my-recipe").name
        assert _brief([given, given.replace("lambda50", "lambda5")]) == ["my-recipe-lambda50", "my-recipe-lambda5"]


def test_a_notice_names_its_runs(folders: list[Path], tmp_path: Path) -> None:
    noted = write_run(tmp_path / "noted", recipe(), 0.3, pictures=False)
    append(noted, {"step": 3, "notice": "reward-hacking", "text": "the reward rose while another fell"})
    page = render(comparison_story([folders[0], noted]))
    assert '<b>Reward hacking</b> <span class="where">noted</span>' in page


def test_the_command_writes_one_page_beside_the_runs(folders: list[Path]) -> None:
    done = CliRunner().invoke(app, ["report", *map(str, folders)])
    assert done.exit_code == 0, done.output
    assert (folders[0].parent / "comparison.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert write_report(folders[:2], folders[0].parent / "other.html").is_file()


def test_what_cannot_be_compared_is_said(folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is named twice; name each run once"):
        comparison_story([folders[0], folders[0]])
    with pytest.raises(UsageError, match="no such folder"):
        comparison_story([folders[0], tmp_path / "nowhere"])
    (tmp_path / "page.html").write_text("a page", encoding="utf-8")
    with pytest.raises(UsageError, match=r"page\.html: is a file; give run directories"):
        comparison_story([folders[0], tmp_path / "page.html"])  # as `runs/*` names it
    with pytest.raises(UsageError, match=r"not a run\. A comparison takes runs"):
        comparison_story([folders[0], tmp_path])
    done = CliRunner().invoke(app, ["report", *map(str, folders), "--wandb"])
    assert isinstance(done.exception, UsageError)
    assert "takes one run or one sweep" in str(done.exception)
    many = [write_run(tmp_path / f"m{n}", recipe(method={"reward_multiplier": n + 1.0}), until=0, pictures=False)
            for n in range(9)]  # fmt: skip
    with pytest.raises(UsageError, match="9 different settings, and a comparison shows at most 8"):
        comparison_story(many)
