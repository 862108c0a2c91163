"""What `amsd sweep show` prints."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from amsd.sweep.results import State, SweepResults, TrialResult
from amsd.sweep.worker import last_line

_STYLE: dict[State, str] = {"queued": "dim", "running": "cyan", "complete": "", "pruned": "yellow", "failed": "red"}


def overview(results: SweepResults, rows: int | None = None) -> RenderableType:
    """Counts, the trials (the last `rows` that were started, or all), best, Pareto front and importance."""
    parts: list[RenderableType] = [headline(results), trial_table(results, rows)]
    if results.best is not None:
        parts.append(_best(results))
    if len(results.objectives) > 1 and results.pareto:
        parts.append(Text("Pareto front: " + ", ".join(f"#{trial.number}" for trial in results.pareto)))
    if results.importance:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in results.importance.items())
        parts.append(Text(f"Importance for {results.objectives[0].label} (PED-ANOVA): {shares}"))
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


def trial_table(results: SweepResults, rows: int | None = None) -> Table:
    """One row per trial; `*` marks the best or the Pareto front, `!` a broken constraint."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("#", justify="right")
    table.add_column("state")
    dimensions = list(results.sweep.search)
    for name in dimensions:
        table.add_column(name.rpartition(".")[2], overflow="fold")
    for objective in results.objectives:
        arrow = "↑" if objective.direction == "maximize" else "↓"
        table.add_column(f"{objective.label} {arrow}", justify="right", overflow="fold")
    for constraint in results.sweep.constraint:
        table.add_column(constraint.metric, justify="right", overflow="fold")
    table.add_column("time", justify="right")
    table.add_column("note", overflow="fold")
    front = {trial.number for trial in results.pareto} if len(results.objectives) > 1 else set()
    best = results.best
    marked = front or ({best.number} if best else set())
    trials = [trial for trial in results.trials if rows is None or trial.state != "queued"]
    for trial in trials if rows is None else trials[-rows:]:
        mark = "*" if trial.number in marked else "" if trial.feasible else "!"
        table.add_row(*_cells(trial, results, dimensions, mark), style=_STYLE[trial.state])
    return table


def _cells(trial: TrialResult, results: SweepResults, dimensions: list[str], mark: str) -> list[str]:
    values = [f"{value:.4g}" for value in trial.values] if trial.values else ["" for _ in results.objectives]
    if not trial.values and trial.intermediate:
        step = max(trial.intermediate)
        values[0] = f"({trial.intermediate[step]:.4g} at {step})"
    bounds = [_shown(trial.constraints.get(constraint.metric)) for constraint in results.sweep.constraint]
    params = [_shown(trial.params.get(name)) for name in dimensions]
    return [f"{mark}{trial.number}", trial.state, *params, *values, *bounds, _time(trial.duration), _note(trial)]


def _note(trial: TrialResult) -> str:
    notes = []
    if trial.copy_of is not None:
        notes.append(f"same as #{trial.copy_of}")
    if trial.attempts > 1:
        notes.append(f"resumed {trial.attempts - 1}x")
    if trial.error:
        notes.append(last_line(trial.error)[:120])
    return "; ".join(notes)


def _best(results: SweepResults) -> Text:
    best = results.best
    assert best is not None
    values = zip(results.objectives, best.values or (), strict=True)
    shown = ", ".join(f"{objective.label} = {value:.4g}" for objective, value in values)
    params = ", ".join(f"{name} = {_shown(value)}" for name, value in best.params.items())
    return Text(f"Best: #{best.number} ({shown}) with {params}")


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
