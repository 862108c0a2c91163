"""Weights & Biases: one run per training, online or offline, under `RUN/wandb/`.

Training scalars have the axis `step`, evaluations the axis `eval/step`; W&B's own step is never set, so late points are
not dropped. The first evaluation setting logs as `eval/<metric>`, any further one as `eval/<setting>/<metric>`.

A resumed online run continues under its id (points after the checkpoint appear twice there). W&B does not resume
offline: a second `offline-run-*` folder with the same id appears, and `wandb sync` of both, in order, joins them.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from amsd.files import write_text
from amsd.tracking.connection import connect
from amsd.tracking.protocol import FINISHED, RunInfo
from amsd.tracking.values import evaluation_values
from amsd.training.events import CheckpointRecord, Notice, StepRecord

if TYPE_CHECKING:
    from amsd.evaluation.result import EvaluationResult

#: Seconds that starting a run, and uploading what is left at its end, may take.
INIT_TIMEOUT = 30.0
FINISH_TIMEOUT = 300.0


class WandbTracker:
    """Logs to one W&B run. No failure of W&B reaches the training: it is announced once, then W&B is left alone."""

    def __init__(self, announce: Callable[[Notice], None]) -> None:
        self._announce = announce
        self._run: Any = None
        self._step = 0
        self._first_setting = ""
        self._axes: set[str] = set()
        self._notices: list[list[Any]] = []

    def on_start(self, info: RunInfo) -> None:
        """Open the run; say so if it is offline."""
        self._step = info.resumed_from or 0
        self._first_setting = info.recipe.evaluation_settings[0].name
        if info.recipe.tracking.mode == "disabled":
            return
        with self._guarded("could not be started", ValueError):  # ValueError: a setting of W&B itself is invalid
            connection = connect(info.recipe.tracking.mode)
            if connection.mode == "online":
                self._run, reason = self._online(info)
            else:
                reason = connection.reason
            if self._run is None and connection.mode != "disabled":
                self._run = _open(info, "offline")
            if reason is not None:
                self._say_not_online(connection.mode, reason)

    def on_phase(self, phase: str, step: int) -> None:
        """Nothing: the seconds of every phase are part of the step."""

    def on_step(self, record: StepRecord) -> None:
        """Scalars over `step`."""
        self._step = record.step
        self._log("step", record.step, record.values)

    def on_checkpoint(self, record: CheckpointRecord) -> None:
        """Where the checkpoint is and what identifies its weights (the weights themselves stay on disk)."""
        values = {
            "checkpoint/step": record.step,
            "checkpoint/path": str(record.path),
            "checkpoint/weights_sha256": record.weights_sha256,
        }
        self._log("step", record.step, values)

    def on_evaluation(self, step: int, results: Sequence[EvaluationResult], pictures: Mapping[str, Path]) -> None:
        """Scalars, a table of every prompt and the grid of samples, over `eval/step`."""
        if self._run is None:
            return
        import wandb

        with self._guarded("stopped"):
            values: dict[str, Any] = {}
            for result in results:
                prefix = "eval" if result.name == self._first_setting else f"eval/{result.name}"
                values |= evaluation_values(result, prefix)
                values[f"prompts/{result.name}"] = wandb.Table(*_prompt_table(step, result))
            for name, path in pictures.items():
                values[f"samples/{name}"] = wandb.Image(str(path), caption=f"step {step}: a prompt per row")
            self._log("eval/step", step, values)

    def on_notice(self, notice: Notice) -> None:
        """A row of the table `notices`, and an alert, which W&B sends on if the user has asked it to."""
        if self._run is None:
            return
        import wandb

        self._notices.append([notice.step, notice.kind, notice.text])
        with self._guarded("stopped"):
            self._run.alert(title=notice.kind, text=notice.text, level="WARN")
            table = wandb.Table(["step", "kind", "text"], [list(row) for row in self._notices])
            self._log("step", notice.step or self._step, {"notices": table})

    def on_end(self, status: str, error: str | None) -> None:
        """Upload what is left and close the run."""
        if self._run is None:
            return
        with self._guarded("could not be finished"):
            self._run.summary.update({"status": status} | ({"error": error} if error else {}))
            self._run.finish(exit_code=0 if status == FINISHED else 1)
        self._run = None

    def _online(self, info: RunInfo) -> tuple[Any, str | None]:
        import wandb

        try:
            run = _open(info, "online")
            if run.url:  # reports link to it
                write_text(info.run.path / "wandb" / "run-url", f"{run.url}\n")
            return run, None
        except (wandb.Error, OSError) as error:
            return None, f"the server refused or did not answer in {INIT_TIMEOUT:g} s ({error})"

    def _say_not_online(self, mode: str, reason: str) -> None:
        if mode == "disabled":
            self._announce(Notice("wandb-disabled", f"W&B is off: {reason}.", self._step))
            return
        place = Path(self._run.settings.sync_dir)
        text = f"W&B runs offline: {reason}. Upload later with `wandb sync {place}`."
        self._announce(Notice("wandb-offline", text, self._step))

    def _log(self, axis: str, position: int, values: Mapping[str, Any]) -> None:
        """Log values over an axis that they are bound to when they are first seen."""
        if self._run is None:
            return
        with self._guarded("stopped"):
            for name in values.keys() - self._axes:
                self._run.define_metric(name, step_metric=axis)
            self._axes |= values.keys()
            self._run.log({axis: position, **values})

    @contextmanager
    def _guarded(self, what: str, *more: type[Exception]) -> Iterator[None]:
        """Turn a failure of W&B into one notice and silence."""
        import wandb
        from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

        try:
            yield
        except (wandb.Error, OSError, MailboxClosedError, HandleAbandonedError, *more) as error:
            self._run = None
            text = f"Tracking with W&B {what}: {error or type(error).__name__}. The run goes on; see metrics.jsonl."
            self._announce(Notice("wandb-failed", text, self._step))


def _open(info: RunInfo, mode: Literal["online", "offline"]) -> Any:
    import wandb

    tracking = info.recipe.tracking
    return wandb.init(
        project=tracking.project,
        entity=tracking.entity,
        group=tracking.group,
        name=tracking.name or info.run.path.resolve().name,
        tags=tracking.tags,
        mode=mode,
        dir=info.run.path,
        id=_run_id(info),
        resume="allow",
        reinit="finish_previous",
        config=info.recipe.model_dump(mode="json") | {"identity": info.identity},
        settings=wandb.Settings(
            silent=True,
            console="off",
            init_timeout=INIT_TIMEOUT,
            finish_timeout=FINISH_TIMEOUT,
            finish_timeout_raises=True,
        ),
    )


def _run_id(info: RunInfo) -> str:
    """Id of the W&B run: an agent's (WANDB_RUN_ID), or one that is kept beside the run's files for a resume."""
    given = os.environ.get("WANDB_RUN_ID")
    file = info.run.path / "wandb" / "run-id"
    if given is None and info.resumed_from is not None and file.is_file():
        return file.read_text(encoding="utf-8").strip()
    chosen = given or secrets.token_hex(4)
    write_text(file, chosen + "\n")
    return chosen


def _prompt_table(step: int, result: EvaluationResult) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows: a prompt per row, a metric per column."""
    metrics = result.metrics
    rows = [
        [step, prompt, *(metric.per_prompt[index] for metric in metrics.values())]
        for index, prompt in enumerate(result.prompts)
    ]
    return ["step", "prompt", *metrics], rows
