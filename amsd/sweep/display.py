"""What a sweep says: its size before it runs, its table, and how it goes while it runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from amsd.evaluation.statistics import measured
from amsd.recipe.cost import training_cost
from amsd.sweep.launchers.processes import last_step
from amsd.sweep.results import State, SweepResults, TrialResult
from amsd.sweep.schema import SweepPlan
from amsd.sweep.trial import make_point, points_to_queue
from amsd.sweep.worker import last_line

#: Trials that the live table shows; the newest ones.
ROWS = 20
#: Columns of the widest word of a parameter that is not broken on a narrow terminal.
_WIDEST = 16
_STYLE: dict[State, str] = {"queued": "dim", "running": "cyan", "complete": "", "pruned": "yellow", "failed": "red"}


def overview(results: SweepResults, rows: int | None = None) -> RenderableType:
    """Counts, the trials (the last `rows` that were started, or all), best, Pareto front and importance."""
    parts: list[RenderableType] = [headline(results), trial_table(results, rows), Text()]
    if results.best is not None:
        parts.append(_best(results))
    if len(results.objectives) > 1 and results.pareto:
        parts.append(_hanging("Pareto front:", ", ".join(f"#{trial.number}" for trial in results.pareto)))
    if rows is None and results.importance:  # its bootstrap is too slow for a live table
        shares = ", ".join(f"{name} {share:.0%} ± {error:.0%}" for name, (share, error) in results.importance.items())
        parts.append(_hanging("Importance:", f"{shares} (PED-ANOVA, for {results.objectives[0].label})"))
    if results.stopped:
        parts.append(Text(results.stopped, style="red"))
    return Group(*parts)


def headline(results: SweepResults) -> Text:
    """One line: name and how many trials are in which state."""
    counts = Counter(trial.state for trial in results.trials)
    states = [f"{counts[state]} {state}" for state in _STYLE if counts[state]]
    limit = results.sweep.budget.trials
    total = f"{len(results.trials)} trials" if limit is None else f"{len(results.trials)} of {limit} trials"
    return Text(f"{results.name}: {total} ({', '.join(states) or 'none yet'})", style="bold")


def outcome(trial: TrialResult, results: SweepResults) -> str:
    """One trial in one line: its values if it has them, what it sets, and what is to be said of it."""
    values = zip(results.objectives, _values(trial, results), strict=False)
    params = (f"{name.rpartition('.')[2]} = {_shown(value)}" for name, value in trial.params.items())
    measured_first = [", ".join(f"{objective.label} = {value}" for objective, value in values), ", ".join(params)]
    return "; ".join(part for part in [*measured_first, *_notes(trial, results)] if part)


def trial_table(results: SweepResults, rows: int | None = None) -> Table:
    """One row per trial; `*` marks the best or the Pareto front, `!` a broken constraint."""
    trials = [trial for trial in results.trials if rows is None or trial.state != "queued"]
    trials = trials if rows is None else trials[-rows:]
    notes = {trial.number: "; ".join(_notes(trial, results)) for trial in trials}
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    dimensions = list(results.sweep.search)
    for name in dimensions:
        words = [word for text in (_head(name), *(_shown(t.params.get(name)) for t in trials)) for word in text.split()]
        table.add_column(_head(name), overflow="fold", min_width=min(_WIDEST, max(map(len, words), default=1)))
    for objective in results.objectives:
        arrow = "↑" if objective.direction == "maximize" else "↓"
        table.add_column(f"{_broken(objective.label)} {arrow}", justify="right", no_wrap=True)
    for constraint in results.sweep.constraint:
        table.add_column(_broken(constraint.metric), justify="right", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    if any(notes.values()):
        table.add_column("note", overflow="fold")
    front = {trial.number for trial in results.pareto} if len(results.objectives) > 1 else set()
    best = results.best
    marked = front or ({best.number} if best else set())
    for trial in trials:
        mark = "*" if trial.number in marked else "" if trial.feasible else "!"
        cells = _cells(trial, results, dimensions, mark)
        table.add_row(*cells, *([notes[trial.number]] if any(notes.values()) else []), style=_STYLE[trial.state])
    return table


def _cells(trial: TrialResult, results: SweepResults, dimensions: list[str], mark: str) -> list[str]:
    values = _values(trial, results) or ["" for _ in results.objectives]
    if not trial.values and trial.intermediate:
        step = max(trial.intermediate)
        values[0] = f"({trial.intermediate[step]:.4g} at step {step})"
    bounds = [_shown(trial.constraints.get(constraint.metric)) for constraint in results.sweep.constraint]
    params = [_shown(trial.params.get(name)) for name in dimensions]
    return [f"{mark}{trial.number}", trial.state, *params, *values, *bounds, _time(trial.duration)]


def _values(trial: TrialResult, results: SweepResults) -> list[str]:
    pairs = zip(trial.values or (), results.objectives, strict=False)
    return [measured(value, trial.error_of(objective.label)) for value, objective in pairs]


def _notes(trial: TrialResult, results: SweepResults) -> Iterator[str]:
    if trial.state == "running":
        yield from _progress(trial, results)
    if trial.copy_of is not None:
        yield f"same as #{trial.copy_of}"
    if trial.attempts > 1:
        yield f"resumed {trial.attempts - 1}x"
    if trial.error:
        yield last_line(trial.error)[:120]


def _progress(trial: TrialResult, results: SweepResults) -> Iterator[str]:
    """Where a running trial is, as far as its files are on this machine."""
    index = next((index for index, run in enumerate(trial.runs) if not run.values), None)
    if index is None:
        return
    step = last_step(trial.runs[index].directory)
    total = trial.settings.get("training.steps", results.recipe.training.steps)
    seed = f", seed {index + 1} of {len(trial.runs)}" if len(trial.runs) > 1 else ""
    yield f"step {step} of {total}{seed}" if step else f"starting{seed}"


def _best(results: SweepResults) -> Table:
    best = results.best
    assert best is not None
    values = zip(results.objectives, _values(best, results), strict=True)
    first = ", ".join(f"{objective.label} = {value}" for objective, value in values)
    params = ", ".join(f"{name} = {_shown(value)}" for name, value in best.params.items())
    return _hanging(f"Best: #{best.number}", first, params)


def _hanging(name: str, *lines: str) -> Table:
    """A name, and text beside it that breaks under itself."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column()
    for index, line in enumerate(lines):
        grid.add_row("" if index else name, line)
    return grid


def _head(dimension: str) -> str:
    """The key without its section, in words, so that a narrow terminal breaks it between them."""
    return dimension.rpartition(".")[2].removesuffix("_computation").replace("_", " ")


def _broken(label: str) -> str:
    return label.replace("/", "/\n").replace(" (", "\n(")


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


@contextmanager
def following(console: Console, read: Callable[[], SweepResults]) -> Iterator[Callable[[], None]]:
    """Inside the block, each call of what is yielded shows what `read` returns then."""
    if not console.is_terminal:
        yield Lines(console, read)
        return
    with Live(headline(read()), console=console, refresh_per_second=1, transient=True) as live:
        yield lambda: live.update(overview(read(), rows=ROWS))


class Lines:
    """Prints a line for every trial that has started or ended since the last call."""

    def __init__(self, console: Console, read: Callable[[], SweepResults]) -> None:
        self._console = console
        self._read = read
        self._seen: dict[int, tuple[str, int]] = {}

    def __call__(self) -> None:
        """Read, compare, print."""
        results = self._read()
        for trial in results.trials:
            now = (trial.state, trial.attempts)
            if trial.state != "queued" and self._seen.get(trial.number) != now:
                self._console.print(self._line(trial, results), highlight=False, soft_wrap=True)
            self._seen[trial.number] = now

    def _line(self, trial: TrialResult, results: SweepResults) -> Text:
        ended = sum(other.state not in ("queued", "running") for other in results.trials)
        total = results.sweep.budget.trials or len(results.trials)
        return Text(f"trial {trial.number} {trial.state}: {outcome(trial, results)} ({ended} of {total} done)")


def outline(plan: SweepPlan) -> Iterator[str]:
    """Lines of text: points, seeds, cost of the trainings, budget.

    Raises:
        RecipeError: a point of the grid or one of the first points cannot be run.
    """
    sweep, budget = plan.sweep, plan.sweep.budget
    queued = [make_point(plan, Path(), number, params) for number, params in enumerate(points_to_queue(plan))]
    is_grid = sweep.sampler.name == "grid"
    count = len(queued) if is_grid else budget.trials or len(queued)
    endless = not is_grid and budget.trials is None
    yield (
        f"{sweep.name}: {_counted(count, 'point')} x {_counted(len(sweep.seeds), 'seed')}"
        f"{', then more until its budget ends' if endless else ''}"
    )
    costs = {point.key: point.cost for point in queued}
    if len(costs) < len(queued):
        yield f"{_counted(len(queued) - len(costs), 'trial')} will reuse the result of an identical point."
    if not endless:
        drawn = count - len(queued)  # what a sampler will draw is unknown: counted as the base recipe
        total = sum(costs.values())
        total += drawn * len(sweep.seeds) * training_cost(plan.recipe, sweep.execution.processes)
        yield (
            f"Training: {'about ' if drawn else ''}{total:,.0f} network forward-equivalents if every trial runs to its "
            "end; evaluation comes on top."
        )
    if budget.network_calls is not None:
        yield f"Budget: {budget.network_calls:,.0f} network forward-equivalents."
    if budget.seconds is not None:
        yield f"Budget: {budget.seconds:,.0f} s."


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
