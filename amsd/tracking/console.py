"""The console: a live display on a terminal, plain lines in a pipe or a log file."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from amsd.evaluation.statistics import measured
from amsd.tracking.protocol import FINISHED, RunInfo, Tracker
from amsd.training.events import CheckpointRecord, Notice, StepRecord

if TYPE_CHECKING:
    from amsd.evaluation.result import EvaluationResult, Metric

#: What is shown of a step: key of the record and its short name.
SHOWN = (
    ("reward/mean", "reward"),
    ("loss", "loss"),
    ("kl", "KL"),
    ("validation/kl", "KL on held-out prompts"),
    ("control_to_target", "control/target"),
    ("gradient_norm", "gradient"),
    ("ess", "ESS"),
)
#: Steps over which the seconds per step are averaged. A slow first step is soon forgotten, and a buffer of ten
#: passes is filled once among them.
_AVERAGED = 10
#: Seconds without a line in a pipe after which the progress of an evaluation is told.
_SILENCE = 30.0


class ConsoleTracker(Tracker):
    """Shows phase, progress, the main scalars, the time left and the last evaluation."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._live: Live | None = None
        self._phase = ""
        self._step = 0
        self._steps = 0
        self._best_metric = ""
        self._values: Mapping[str, float] = {}
        self._evaluation: RenderableType | None = None
        self._last: float | None = None
        self._durations: deque[float] = deque(maxlen=_AVERAGED)
        self._told = time.monotonic()

    def on_start(self, info: RunInfo) -> None:
        """Say what begins and, on a terminal, open the display."""
        self._step, self._steps = info.resumed_from or 0, info.recipe.training.steps
        self._best_metric = info.recipe.best_metric
        how = "new run" if info.resumed_from is None else f"continues from step {info.resumed_from}"
        self._say(Text.assemble(("run ", "bold"), f"{info.run.path} · recipe {info.identity} · {how}"))
        self._last = self._clock()
        self._phase = "loading the model"
        if self._console.is_terminal:
            self._live = Live(self._display(), console=self._console, refresh_per_second=4, transient=False)
            self._live.start()

    def on_phase(self, phase: str, step: int) -> None:
        """Show the phase."""
        self._phase = phase
        if self._live is None and phase.startswith("evaluation,") and time.monotonic() - self._told > _SILENCE:
            self._say(Text(phase))
        self._refresh()

    def on_step(self, record: StepRecord) -> None:
        """Move the bar; in a pipe, one line."""
        self._step, self._values = record.step, record.values
        self._time_step()
        if self._live is None:
            values = "  ".join(f"{name} {value}" for name, value in self._shown())
            self._say(Text(f"step {self._position()}  {values}  {self._time_left()}"))
        self._refresh()

    def on_checkpoint(self, record: CheckpointRecord) -> None:
        """Print the name of its folder."""
        self._say(Text.assemble(("checkpoint ", "cyan"), record.path.name))

    def on_evaluation(self, step: int, results: Sequence[EvaluationResult], pictures: Mapping[str, Path]) -> None:
        """One line per setting with the deciding metric; the display keeps all metrics of the first setting."""
        who = f"step {step}" if step else "base model"
        for result in results:
            if self._best_metric in result.metrics:
                metric = f"{self._best_metric} {describe(result.metrics[self._best_metric])}"
                self._say(Text.assemble(("evaluation ", "green"), f"{who} · {result.name} · {metric}"))
        if results:
            self._evaluation = _evaluation_table(who, results[0])
        self._last = self._clock()  # an evaluation is not part of a step's time
        self._refresh()

    def on_notice(self, notice: Notice) -> None:
        """Print its kind, its step and its text."""
        where = f" (step {notice.step})" if notice.step else ""
        self._say(Text.assemble((f"{notice.kind}{where}: ", "yellow"), notice.text))

    def on_end(self, status: str, error: str | None) -> None:
        """Close the display and say how it ended; the error itself is told by the command line."""
        if self._live is not None:
            self._phase = status
            if status == FINISHED:
                self._evaluation = None  # its line stands above, and the command ends with the whole table
            self._live.update(self._display(), refresh=True)
            self._live.stop()
            self._live = None
        style = "bold green" if status == FINISHED else "bold red"
        self._say(Text.assemble((status, style), f" at step {self._position()}"))

    def _say(self, text: Text) -> None:
        self._told = time.monotonic()
        self._console.print(text, soft_wrap=self._live is None, highlight=False)

    def _refresh(self) -> None:
        if self._live is not None:
            self._live.update(self._display())

    def _display(self) -> RenderableType:
        bar = Table.grid(padding=(0, 1))
        total = max(self._steps, 1)
        done = min(self._step, total)
        bar.add_row(
            Text(f"{self._position()}", style="bold"),
            ProgressBar(total=total, completed=done, width=30, complete_style="cyan", finished_style="green"),
            Text(self._time_left()),
            Text(self._phase, style="magenta"),
        )
        values = Text("   ").join(Text.assemble((f"{name} ", "dim"), value) for name, value in self._shown())
        parts: list[RenderableType] = [Text(""), bar]
        parts += [values] if values else []
        parts += [self._evaluation] if self._evaluation is not None else []
        return Group(*parts)

    def _shown(self) -> list[tuple[str, str]]:
        return [(name, f"{self._values[key]:.4g}") for key, name in SHOWN if key in self._values]

    def _position(self) -> str:
        return f"{self._step}/{self._steps}"

    def _time_step(self) -> None:
        now = self._clock()
        if self._last is not None:
            self._durations.append(now - self._last)
        self._last = now

    def _time_left(self) -> str:
        if not self._durations:
            return "-:--:-- left"
        seconds = sum(self._durations) / len(self._durations)
        left = seconds * max(self._steps - self._step, 0)
        return f"{timedelta(seconds=round(left))} left ({seconds:.3g} s/step)"


def describe(metric: Metric) -> str:
    """A metric as `0.812 ± 0.011, +0.204 ± 0.013 to base` (means over prompts ± standard errors)."""
    text = measured(metric.mean, metric.standard_error)
    if metric.paired is None:
        return text
    return f"{text}, {measured(metric.paired.difference, metric.paired.standard_error, '+')} to base"


def _evaluation_table(who: str, result: EvaluationResult) -> Table:
    table = Table(title=f"evaluation of {who} · {result.name}", title_justify="left", title_style="dim", box=None)
    table.add_column("metric")
    table.add_column("mean ± s.e.", justify="right")
    table.add_column("difference to base ± s.e.", justify="right")
    table.add_column("p", justify="right")
    for name, metric in result.metrics.items():
        paired = metric.paired
        difference = "" if paired is None else measured(paired.difference, paired.standard_error, "+")
        p_value = "" if paired is None or paired.p_value is None else f"{paired.p_value:.2g}"
        table.add_row(name, measured(metric.mean, metric.standard_error), difference, p_value)
    return table
