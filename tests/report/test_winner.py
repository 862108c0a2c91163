"""The opening sentences of a sweep: who won, against the base model and against the next best."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
from scipy.stats import ttest_rel

from amsd.recipe.guidance_modes import UNGUIDED
from amsd.report.numbers import difference
from amsd.report.page import render
from amsd.report.story import Story
from amsd.report.sweep_story import story_of
from amsd.report.tables import trial_table
from amsd.report.winner import ahead, standfirst, standings
from amsd.report.words import facts, notices
from amsd.run_directory import RunDirectory
from amsd.sweep.results import SweepResults
from amsd.sweep.schema import Constraint
from tests.report.synthetic import REWARD, append, write_sweep


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> SweepResults:
    return write_sweep(tmp_path_factory.mktemp("winner") / "sweep", seeds=(0,), pictures=False)


@pytest.fixture(scope="module")
def one_seed(results: SweepResults) -> Story:
    return story_of(results)


def rewards(story: Story, trial: int | None) -> list[float]:
    """Rewards of the last checkpoint by prompt, from the file."""
    (entry,) = [entry for entry in story.entries if entry.trial == trial and entry.run is not None]
    assert entry.run is not None
    run = RunDirectory(entry.run.path)
    file = run.checkpoint(run.steps()[-1]) / "evaluation" / f"{story.setting}.json"
    content: dict[str, Any] = json.loads(file.read_text())
    values: list[float] = content["metrics"][REWARD]["per_prompt"]
    return values


def test_runs_under_one_setting_are_compared_prompt_by_prompt(one_seed: Story) -> None:
    alike = [place for place in standings(one_seed) if place.entry.mode is not UNGUIDED]
    mine, theirs = (rewards(one_seed, place.entry.trial) for place in alike[:2])
    gaps = [a - b for a, b in zip(mine, theirs, strict=True)]
    gap = ahead(one_seed, *alike[:2])
    assert gap.difference == pytest.approx(fmean(gaps))
    assert gap.standard_error == pytest.approx(stdev(gaps) / math.sqrt(len(gaps)))
    assert gap.p_value == pytest.approx(ttest_rel(mine, theirs).pvalue)


def test_the_opening_names_the_winner_and_the_next_best(one_seed: Story) -> None:
    first, second, *_ = standings(one_seed)
    text = standfirst(one_seed)
    assert f"by trial {first.entry.trial} (CFG trajectories; mode = trajectories, eta = 1" in text
    gap = ahead(one_seed, first, second)
    assert gap.difference == pytest.approx(first.reward.mean - second.reward.mean)
    assert f"The next best is trial {second.entry.trial}, {difference(gap)[1:]}" in text


def test_several_seeds_are_compared_by_their_means(a_sweep: Story) -> None:
    first, second, *_ = standings(a_sweep)
    gap = ahead(a_sweep, first, second)
    assert gap.difference == pytest.approx(first.reward.mean - second.reward.mean)
    assert first.reward.standard_error is not None
    assert second.reward.standard_error is not None
    assert gap.standard_error == pytest.approx(math.hypot(first.reward.standard_error, second.reward.standard_error))
    assert "over 2 training seeds" in standfirst(a_sweep)


def test_the_winner_stands_out_in_the_table(one_seed: Story) -> None:
    rows = trial_table(one_seed).rows
    assert [row.emphasis for row in rows] == [True] + [False] * (len(rows) - 1)


def test_a_trial_that_breaks_a_constraint_does_not_win(results: SweepResults) -> None:
    best = standings(story_of(results))[0].entry.trial
    sweep = results.sweep.model_copy(update={"constraint": (Constraint(metric="train/kl", at_most=10.0),)})
    trials = tuple(replace(trial, feasible=trial.number != best) for trial in results.trials)
    story = story_of(replace(results, sweep=sweep, trials=trials))
    assert standings(story)[0].entry.trial != best
    assert "among trials that meet the constraints" in standfirst(story)
    assert ("Constraints", "train/kl at most 10") in facts(story)
    badges = {row.cells[0].text: row.cells[0].badge for row in trial_table(story).rows}
    assert badges[f"trial {best}"] == "breaks a constraint"


def test_alarms_of_many_runs_are_one_box(tmp_path: Path) -> None:
    results = write_sweep(tmp_path / "sweep", seeds=(0,), pictures=False)
    for trial in results.trials[:3]:
        text = f"the trained reward rose by 0.{trial.number} while diversity fell"
        append(trial.runs[0].directory, {"step": 40, "notice": "reward-hacking", "text": text})
    page = render(story_of(results))
    assert page.count('role="alert"') == 1
    assert "trials 0, 1, 2" in page
    assert "<summary>2 more</summary>" in page
    assert "rose by 0.2" in page


def test_bookkeeping_of_many_runs_is_said_once_and_last(tmp_path: Path) -> None:
    results = write_sweep(tmp_path / "sweep", seeds=(0,), pictures=False)
    for trial in results.trials[:8]:
        (run,) = trial.runs
        place = f"{run.directory}/wandb/offline-run-{trial.number}"
        text = f"W&B runs offline: no key. Upload later with `wandb sync {place}`."
        append(run.directory, {"step": 0, "notice": "wandb-offline", "text": text})
    story = story_of(results)
    (said,) = [said for said in notices(story) if said.kind == "wandb-offline"]
    assert said.text == "W&B runs offline: no key. Upload later with `wandb sync trials/…`."
    assert said.where == "trials 0, 1, 2, 3, 4, 5, 6, 7"
    page = render(story)
    assert page.count("W&amp;B runs offline") == 1
    assert page.index("W&amp;B runs offline") > page.index('id="tables"')
