"""Tables of a comparison: what differs, the final numbers, and the differences to the first run."""

from __future__ import annotations

from collections.abc import Mapping

from amsd.evaluation.result import Metric
from amsd.report.comparison import differences
from amsd.report.data import Run
from amsd.report.numbers import difference, p_value
from amsd.report.seeds import between, over_seeds
from amsd.report.story import Group, ShownRun, Story, evaluation, kl_at, metric_names, setting_of
from amsd.report.tables import EMPTY, Cell, ReportTable, TableRow, metric_cell

_KL = "KL (nats)"


def settings_table(story: Story) -> ReportTable:
    """The settings that differ, by group."""
    heads = ("setting", *(group.name for group in story.groups))
    rows = [TableRow("", (Cell(each.key), *map(Cell, each.values))) for each in differences(story)]
    return ReportTable("Settings that differ", heads, tuple(rows))


def final_tables(story: Story) -> list[ReportTable]:
    """The last evaluated checkpoint of each group, and its difference to the first one."""
    ended = {group: _ended(story, group) for group in story.groups}
    names = [name for name in metric_names(story.runs) if any(name in each for each, _ in ended.values())]
    first = story.groups[0]
    numbers = [_numbers(story, group, ended[group], names) for group in story.groups]
    heads = ("run", *names, _KL, "step", "seeds")
    tables = [ReportTable("At the last evaluated checkpoint", heads, tuple(numbers), story.setting or "")]
    if len(story.groups) > 1:
        rows = [_against(story, group, first, ended, names) for group in story.groups[1:]]
        tables.append(ReportTable(f"Difference to {first.name}", ("run", *names), tuple(rows), story.setting or ""))
    return tables


Final = tuple[Mapping[str, list[Metric]], list[int]]
"""By metric the values of the runs of a group at their last evaluated checkpoints; and the steps of these."""


def _ended(story: Story, group: Group) -> Final:
    found: dict[str, list[Metric]] = {}
    steps = []
    for entry in _members(story, group):
        if entry.run is None or (last := _last(story, entry.run)) is None:
            continue
        step, metrics = last
        steps.append(step)
        kl = kl_at(entry.run, step)
        for name, metric in {**metrics, **({_KL: kl} if kl is not None else {})}.items():
            found.setdefault(name, []).append(metric)
    return found, steps


def _last(story: Story, run: Run) -> tuple[int, Mapping[str, Metric]] | None:
    for checkpoint in reversed(run.checkpoints):
        result = evaluation(checkpoint, setting_of(story, run))
        if result is not None:
            return checkpoint.step, result.metrics
    return None


def _members(story: Story, group: Group) -> list[ShownRun]:
    return [entry for entry in story.entries if entry.group == group]


def _name(story: Story, group: Group) -> tuple[str, Cell]:
    key = _members(story, group)[0].key
    return key, Cell(group.name, sort=group.index, hue=group.index)


def _numbers(story: Story, group: Group, ended: Final, names: list[str]) -> TableRow:
    metrics, steps = ended
    key, name = _name(story, group)
    values = (metric_cell(over_seeds(metrics.get(each, []))) for each in (*names, _KL))
    shown = ", ".join(map(str, dict.fromkeys(steps))) or "–"
    count = len(_members(story, group))
    return TableRow(key, (name, *values, Cell(shown, sort=max(steps, default=0)), Cell(str(count), sort=count)))


def _against(story: Story, group: Group, first: Group, ended: Mapping[Group, Final], names: list[str]) -> TableRow:
    key, name = _name(story, group)
    alike = _setting(story, group) == _setting(story, first)
    cells = []
    for metric in names:
        mine, theirs = ended[group][0].get(metric, []), ended[first][0].get(metric, [])
        if not mine or not theirs:
            cells.append(EMPTY)
            continue
        paired, by_prompt = between(mine, theirs, alike)
        test = p_value(paired.p_value) if paired.p_value is not None else ""
        how = "" if by_prompt else "over seeds" if paired.p_value is not None else "not paired"
        below = tuple(words for words in (test, how) if words)
        cells.append(Cell(difference(paired), below, paired.difference))
    return TableRow(key, (name, *cells))


def _setting(story: Story, group: Group) -> str | None:
    runs = [entry.run for entry in _members(story, group) if entry.run is not None]
    return setting_of(story, runs[0]) if runs else None
