"""The same story as a W&B Report: run sets by guidance mode, panels over the tracked runs, and the table.

The panels read the runs that training logged to W&B, so the report stays alive while a sweep goes on. Names of keys are
those of the W&B tracker: logged scalars as in metrics.jsonl, evaluations under `eval/`, the recipe as configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amsd.errors import RunError, UsageError
from amsd.places import in_text
from amsd.recipe import Tracking
from amsd.recipe.guidance_modes import FULL, MIXED, TRAJECTORIES, UNGUIDED, GuidanceMode
from amsd.report.story import Story, kl_names, reward_terms
from amsd.report.tables import ReportTable, tables
from amsd.report.winner import headline, standfirst
from amsd.report.words import facts, notices
from amsd.tracking.names import Names

_SCALE = "Config('guidance.guidance_scale')"
_ADJOINT = "Config('guidance.guidance_in_adjoint_computation')"
_CONTROL = "Config('guidance.guidance_in_control_computation')"
#: Filter of the runs of each mode.
FILTERS = {
    TRAJECTORIES: f"{_SCALE} != 1 and {_ADJOINT} = False and {_CONTROL} = False",
    UNGUIDED: f"{_SCALE} = 1",
    FULL: f"{_SCALE} != 1 and {_ADJOINT} = True and {_CONTROL} = True",
    MIXED: (
        f"{_SCALE} != 1 and (({_ADJOINT} = True and {_CONTROL} = False) or ({_ADJOINT} = False and {_CONTROL} = True))"
    ),
}


def require_key() -> None:
    """Say at once that a key is needed, instead of failing after the report was built.

    Raises:
        UsageError: there is no W&B key in the environment or the user's settings.
    """
    import wandb

    if not wandb.login(prompt=False, verify=False):
        raise UsageError(
            "A report on W&B needs a key and none is set. Run `wandb login`, or set WANDB_API_KEY (and WANDB_BASE_URL "
            "for a server of your own). Without a key, leave --wandb out: the report is then an HTML page."
        )


def evaluation_key(metric: str) -> str:
    """Name under which the W&B tracker logs an evaluated metric of a run's first setting."""
    return in_text(f"eval/{metric}")


def build_report(story: Story) -> Any:
    """The report (`wandb_workspaces.reports.v2.Report`), not saved yet.

    Raises:
        UsageError: wandb-workspaces is not installed.
    """
    wr = _reports()
    names = _names(story)
    where = {"project": names.project, **({"entity": names.entity} if names.entity else {})}
    runsets = _runsets(wr, story, where, names)
    blocks = [
        wr.P(text=in_text(standfirst(story))),
        *(wr.CalloutBlock(text=f"{said.kind} ({said.where}): {said.text}") for said in notices(story)),
        *(wr.CalloutBlock(text=gap) for gap in story.gaps),
        wr.TableOfContents(),
        wr.H1(text="What was searched" if story.kind == "sweep" else "What was trained"),
        wr.MarkdownBlock(text=in_text(_settings(story))),
        wr.H1(text="What was gained, and at what price"),
        wr.PanelGrid(runsets=runsets, panels=_tradeoff_panels(wr, story)),
        wr.H1(text="What the pictures look like"),
        wr.PanelGrid(runsets=runsets, panels=_pictures(wr, story)),
        wr.H1(text="How it learned"),
        wr.PanelGrid(runsets=runsets, panels=_curve_panels(wr, story)),
    ]
    if story.kind == "sweep":
        blocks += [
            wr.H1(text="How it was searched"),
            wr.PanelGrid(runsets=runsets, panels=_history_panels(wr, story)),
            wr.H1(text="What mattered"),
            *([wr.MarkdownBlock(text=_importance(story))] if story.importance else []),
            wr.PanelGrid(runsets=runsets, panels=_parameter_panels(wr, story)),
        ]
    blocks += [
        *_adjoint_blocks(wr, story, runsets),
        wr.H1(text="How fast it went"),
        wr.PanelGrid(runsets=runsets, panels=_speed_panels(wr, story)),
        wr.H1(text="The numbers"),
        *(wr.MarkdownBlock(text=in_text(markdown(table))) for table in tables(story)),
    ]
    return wr.Report(
        title=in_text(headline(story)), description=in_text(standfirst(story)), width="fluid", blocks=blocks, **where
    )


def publish(story: Story) -> str:
    """Save the report as a draft and return its address.

    Raises:
        UsageError: there is no key.
        RunError: the server refused it.
    """
    require_key()
    import wandb

    try:
        report = build_report(story)
        report.save(draft=True)
    except (wandb.errors.Error, ValueError, OSError) as error:
        raise RunError(f"W&B did not take the report: {error}") from error
    return str(report.url)


def markdown(table: ReportTable) -> str:
    """A table of the report as Markdown."""
    head = " | ".join(_cell(name) for name in table.heads)
    rows = [
        " | ".join(
            _cell("<br>".join([cell.text, *([cell.badge] if cell.badge else []), *cell.below])) for cell in row.cells
        )
        for row in table.rows
    ]
    ruler = " | ".join("---" for _ in table.heads)
    title = f"**{table.caption}** {table.setting}".strip()
    return "\n".join([title, "", *(f"| {line} |" for line in (head, ruler, *rows))])


def _cell(words: str) -> str:
    return words.replace("|", "\\|").replace("\n", " ")


def _reports() -> Any:
    try:
        import wandb_workspaces.reports.v2 as wr
    except ImportError as error:
        raise UsageError(f"a report on W&B needs wandb-workspaces ({error}): uv pip install 'amsd[reports]'") from error
    return wr


def _names(story: Story) -> Names:
    return Names.of(next((run.recipe.tracking for run in story.runs if run.recipe is not None), Tracking()))


def _runsets(wr: Any, story: Story, where: dict[str, str], names: Names) -> list[Any]:
    """One run set for each guidance mode of a sweep; of a single run, the run."""
    if story.kind == "run":
        name = names.name or story.title
        return [wr.Runset(name=story.title, filters=f"Metric('displayName') = '{_quoted(name)}'", **where)]
    group = f"Metric('Group') = '{_quoted(names.group or story.title)}'"
    modes: Sequence[GuidanceMode] = story.modes or tuple(FILTERS)
    return [wr.Runset(name=mode.name, filters=f"{group} and {FILTERS[mode]}", **where) for mode in modes]


def _quoted(name: str) -> str:
    return name.replace("\\", "\\\\").replace("'", "\\'")


def _settings(story: Story) -> str:
    lines = [f"- `{axis.key}`: {axis.description}" for axis in story.axes]
    return "\n".join([*lines, *(f"- {name}: {value}" for name, value in facts(story))])


def _tradeoff_panels(wr: Any, story: Story) -> list[Any]:
    reward = wr.SummaryMetric(evaluation_key(story.reward))
    panels = [
        wr.ScatterPlot(title="Reward against KL to the base (nats)", x=wr.SummaryMetric(name), y=reward,
                       layout=_place(wr, 12))
        for name in kl_names(story)[:1]
    ]  # fmt: skip
    if story.diversity:
        diversity = wr.SummaryMetric(evaluation_key(story.diversity))
        title = "Reward against diversity"
        panels.insert(0, wr.ScatterPlot(title=title, x=diversity, y=reward, layout=_place(wr, 0)))
    return panels


def _place(wr: Any, x: int, y: int = 0, w: int = 12, h: int = 9) -> Any:
    return wr.Layout(x=x, y=y, w=w, h=h)


def _pictures(wr: Any, story: Story) -> list[Any]:
    keys = [f"samples/{setting}" for setting in story.settings] or ["samples"]
    return [
        wr.MediaBrowser(
            title="Samples by checkpoint",
            media_keys=keys,
            mode="gallery",
            gallery_axis="step",
            layout=_place(wr, 0, w=24),
        )
    ]


def _curve_panels(wr: Any, story: Story) -> list[Any]:
    evaluated = [story.reward, *([story.diversity] if story.diversity else []), *story.held_out[:3], *story.distances]
    terms = [(key, False) for key in reward_terms(story)]
    divergences = [(key, False) for key in kl_names(story)]
    wanted = [("reward/mean", False), *terms, *divergences, ("loss", True), ("gradient_norm", True)]
    panels = [
        wr.LinePlot(title=f"{in_text(name)} in evaluation", x="eval/step", y=[evaluation_key(name)])
        for name in evaluated
    ] + [
        wr.LinePlot(title=in_text(key), y=[in_text(key)], log_y=log, smoothing_factor=0.6, smoothing_show_original=True)
        for key, log in wanted
    ]
    return _arranged(wr, panels)


def _adjoint_blocks(wr: Any, story: Story, runsets: list[Any]) -> list[Any]:
    """Norms at three places of the schedule; nothing for methods without an adjoint."""
    names = {place: f"adjoint_norm/{place}" for place in ("first", "middle", "last")}
    if not any(name in run.curves for run in story.runs for name in names.values()):
        return []
    panels = [wr.LinePlot(title=f"|a|, {place} index", y=[name], log_y=True) for place, name in names.items()]
    return [wr.H1(text="How large the adjoint was"), wr.PanelGrid(runsets=runsets, panels=_arranged(wr, panels))]


def _parameter_panels(wr: Any, story: Story) -> list[Any]:
    key = evaluation_key(story.reward)
    results = [*([evaluation_key(story.diversity)] if story.diversity else []), *kl_names(story)[:1]]
    columns = [wr.ParallelCoordinatesPlotColumn(metric=wr.Config(name)) for name in _config_keys(story)]
    columns += [wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric(name)) for name in (*results, key)]
    return [
        wr.ParallelCoordinatesPlot(title="Every run as a line", columns=columns, layout=_place(wr, 0, w=24)),
        *(slices := _slices(wr, story, key)),
        wr.RunComparer(diff_only="split", layout=_place(wr, 0, 9 + 7 * -(-len(slices) // 3), w=24)),
    ]


def _slices(wr: Any, story: Story, key: str) -> list[Any]:
    """The reward over each searched key, a mark for each run; below the parallel coordinates."""
    panels = [
        wr.ScatterPlot(title=name, x=wr.Config(name), y=wr.SummaryMetric(key), log_x=_is_log(story, name))
        for name in _config_keys(story)
    ]
    for index, panel in enumerate(panels):
        panel.layout = _place(wr, 8 * (index % 3), 9 + 7 * (index // 3), w=8, h=7)
    return panels


def _is_log(story: Story, key: str) -> bool:
    return any(axis.log for axis in story.axes if axis.key == key)


def _history_panels(wr: Any, story: Story) -> list[Any]:
    """The reward of each run over the time of its creation, with the best so far."""
    reward = wr.SummaryMetric(evaluation_key(story.reward))
    created = wr.Metric("CreatedTimestamp")
    best = not story.objectives or story.objectives[0].maximize
    title = f"Optimization history: {story.reward}"
    return [
        wr.ScatterPlot(
            title=title, x=created, y=reward, running_ymax=best, running_ymin=not best, layout=_place(wr, 0, w=24)
        )
    ]


def _importance(story: Story) -> str:
    """Share of the variation among good trials that each key explains (PED-ANOVA), with its standard error."""
    rows = sorted(story.importance.items(), key=lambda pair: -pair[1][0])
    lines = [f"| `{key}` | {100 * share:.0f} ± {100 * error:.0f} % |" for key, (share, error) in rows]
    name = story.objectives[0].name
    return "\n".join([f"| key | importance for {name}, ± standard error |", "|---|---|", *lines])


def _speed_panels(wr: Any, story: Story) -> list[Any]:
    names = ("performance/", "images_per_second")  # the second: runs of before
    logged = {key for run in story.runs for key in run.curves if key.startswith(names)}
    keys = sorted(logged | {"performance/images_per_second", "seconds/total"})
    return _arranged(wr, [wr.LinePlot(title=in_text(key), y=[in_text(key)]) for key in keys])


def _config_keys(story: Story) -> list[str]:
    """Recipe keys that are searched; variants, which have a free name, are left to the guidance keys."""
    keys = [axis.key for axis in story.axes if "." in axis.key]
    return keys or ["guidance.guidance_scale", "schedule.eta"]


def _arranged(wr: Any, panels: list[Any]) -> list[Any]:
    for index, panel in enumerate(panels):
        panel.layout = _place(wr, 8 * (index % 3), 7 * (index // 3), w=8, h=7)
    return panels
