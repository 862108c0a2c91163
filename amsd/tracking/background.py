"""A backend on a thread of its own: whatever it does, a training neither waits for it nor fails because of it.

What it raises is announced once, then it is left alone. A call that blocks is interrupted, and at the end of a run a
backend has `CLOSE_PATIENCE` seconds. `metrics.jsonl` has everything in any case.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from amsd.files import write_json
from amsd.places import in_text, places_of
from amsd.reading import parsed
from amsd.tracking.backend import EXTRAS, TRACKERS, Announce, Backend, Open, install
from amsd.tracking.entries import Entry, Table, Value, checkpoint_entry, evaluation_entry, notice_entry, step_entry
from amsd.tracking.protocol import FINISHED, RunInfo, Tracker
from amsd.training.events import CheckpointRecord, Notice, StepRecord

if TYPE_CHECKING:
    from amsd.evaluation.result import EvaluationResult

#: Seconds that opening may take, which the run does not wait for, and that one call may take while it goes on.
OPEN_PATIENCE = 45.0
CALL_PATIENCE = 30.0
#: Seconds after the last step: to end by itself, to make way in one call, and to end once it was interrupted.
CLOSE_PATIENCE = (16.0, 6.0, 8.0)


class BackgroundTracker(Tracker):
    """Hands every event to the thread of one backend."""

    def __init__(self, name: str, announce: Announce, open_backend: Callable[[], Open] | None = None) -> None:
        """`announce` tells the trackers that cannot fail; `open_backend` finds the class (unset: by `name`)."""
        self.name = name
        self._announce = announce
        self._open_backend = open_backend or (lambda: TRACKERS.load(name))
        self._queue: SimpleQueue[Entry | tuple[str, str | None]] = SimpleQueue()
        self._notices: SimpleQueue[Notice] = SimpleQueue()
        self._opened, self._given_up = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._backend: Backend | None = None
        self._started = 0.0
        self._busy_since: float | None = None
        self._step = 0
        self._first_setting = ""
        self._roots: tuple[Path, ...] = ()
        self._names: dict[str, str] = {}
        self._said = Said(None, None)

    def on_start(self, info: RunInfo) -> None:
        """Begin to open the backend; what comes before it is open waits in the queue, and the training does not."""
        self._step = info.resumed_from or 0
        self._roots = (info.run.path, *places_of(info.recipe))
        self._first_setting = info.recipe.evaluation_settings[0].name
        self._said = Said(info.run.path / "trackers" / f"{self.name}.json", info.resumed_from)
        self._thread = threading.Thread(target=self._work, args=(info,), name=f"amsd-{self.name}", daemon=True)
        self._started = time.monotonic()
        self._thread.start()

    def on_phase(self, phase: str, step: int) -> None:
        """What the thread has to say comes as soon as it can."""
        self._tell()

    def on_step(self, record: StepRecord) -> None:
        """Scalars over `step`."""
        self._step = record.step
        self._put(step_entry(record))

    def on_checkpoint(self, record: CheckpointRecord) -> None:
        """Where the checkpoint is."""
        self._put(checkpoint_entry(record))

    def on_evaluation(self, step: int, results: Sequence[EvaluationResult], pictures: Mapping[str, Path]) -> None:
        """Scalars, tables and pictures over `eval/step`; what an earlier part of the run has logged is not repeated."""
        new = [result for result in results if self._said.new(step, result.name, result.identity)]
        if new or not results:
            kept = {result.name: pictures[result.name] for result in new if result.name in pictures}
            self._put(evaluation_entry(step, new, kept, self._first_setting))

    def on_notice(self, notice: Notice) -> None:
        """The notice, once."""
        if self._said.new(notice.step, notice.kind, notice.text):
            self._put(notice_entry(notice, self._step))

    def on_end(self, status: str, error: str | None) -> None:
        """Let the backend write what is left, for a bounded time."""
        if self._thread is None:
            return
        self._queue.put((status, error and in_text(error, self._roots)))
        if status == FINISHED:  # whoever ends a run by a signal does not wait for a server
            self._opened.wait(max(0.0, self._started + OPEN_PATIENCE - time.monotonic()))
        deadline = time.monotonic() + CLOSE_PATIENCE[0]
        while self._thread.is_alive() and time.monotonic() < deadline and not self._stuck(CLOSE_PATIENCE[1]):
            self._thread.join(0.05)
        if self._thread.is_alive():
            self._interrupt()
            self._thread.join(CLOSE_PATIENCE[2])
        if self._thread.is_alive():
            self._fail("did not end", TimeoutError(f"no answer in {sum(CLOSE_PATIENCE):g} s"))
        self._tell()

    def _put(self, entry: Entry) -> None:
        self._tell()
        if self._stuck(CALL_PATIENCE):
            self._interrupt()
        if not self._given_up.is_set():
            self._queue.put(self._published(entry))

    def _published(self, entry: Entry) -> Entry:
        """The entry as others may read it; names are looked at once."""
        for name in entry.values.keys() - self._names.keys():
            self._names[name] = in_text(name, self._roots)
        values = {self._names[name]: self._public_value(value) for name, value in entry.values.items()}
        notice = entry.notice and replace(entry.notice, text=in_text(entry.notice.text, self._roots))
        return replace(entry, values=values, notice=notice)

    def _public_value(self, value: Value) -> Value:
        if isinstance(value, Table):
            return replace(value, columns=tuple(in_text(name, self._roots) for name in value.columns))
        return in_text(value, self._roots) if isinstance(value, str) else value

    def _stuck(self, seconds: float) -> bool:
        """Whether the call in hand has taken so long."""
        since = self._busy_since
        return since is not None and time.monotonic() - since > seconds

    def _interrupt(self) -> None:
        self._busy_since = None  # once per call
        if self._backend is not None:
            self._backend.interrupt()

    def _work(self, info: RunInfo) -> None:
        """The thread. A backend is somebody else's code, so whatever it raises is caught here."""
        doing = "could not be started"
        try:
            self._backend = self._open_backend()(info, self._notices.put)
            self._opened.set()
            doing = "stopped"
            while isinstance(item := self._queue.get(), Entry):
                self._busy_since = time.monotonic()
                self._backend.log(item)
                self._busy_since = None
            doing = "could not be finished"
            self._backend.close(*item)
        except BaseException as error:  # noqa: BLE001  # SystemExit, too, would end the thread without a word
            self._fail(doing, error)
        finally:
            self._opened.set()

    def _fail(self, what: str, error: BaseException) -> None:
        if not self._given_up.is_set():
            self._given_up.set()
            reason = str(error) if isinstance(error, Exception) and str(error) else repr(error)
            advice = f"{install(self.name)} " if isinstance(error, ImportError) and self.name in EXTRAS else ""
            text = f"Tracking with {self.name} {what}: {reason}. {advice}The run goes on; metrics.jsonl has everything."
            self._notices.put(Notice(f"{self.name}-failed", text, self._step))

    def _tell(self) -> None:
        """Announce what the thread has to say, on the thread of the training."""
        if self._thread is not None and not self._opened.is_set() and time.monotonic() > self._started + OPEN_PATIENCE:
            self._fail("could not be started", TimeoutError(f"no answer in {OPEN_PATIENCE:g} s"))
        while True:
            try:
                self._announce(self._notices.get_nowait())
            except Empty:
                return


class Said:
    """Evaluations and notices that a backend was given, on disk, so that a resumed run does not repeat them."""

    def __init__(self, file: Path | None, resumed_from: int | None) -> None:
        """`file` is None where nothing is remembered; what lies after `resumed_from` happens again."""
        self._file = file
        self._known: list[list[str | int]] = []
        if file is not None and resumed_from is not None and file.is_file():
            try:
                known = parsed(file.read_text(encoding="utf-8"))
                self._known = [entry for entry in known if entry[0] <= resumed_from]
            except (OSError, ValueError, TypeError, LookupError):
                self._known = []  # damaged: points are logged twice at worst

    def new(self, step: int, *content: str) -> bool:
        """Whether this was not said before; it is from now on."""
        entry: list[str | int] = [step, *content]
        if entry in self._known:
            return False
        self._known.append(entry)
        if self._file is not None:
            with suppress(OSError):  # points are logged twice at worst
                write_json(self._file, self._known)
        return True
