"""Weights & Biases: one run per training, online or offline, under `RUN/wandb/` (or WANDB_DIR).

Training scalars have the axis `step`, evaluations the axis `eval/step`; W&B's own step is never set, so late points are
not dropped.

A resumed online run continues under its id (points after the checkpoint appear twice there). W&B does not resume
offline: a second `offline-run-*` folder with the same id appears, and `wandb sync` of both, in order, joins them. The
same is done if W&B's own process dies while a run goes on.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import secrets
import shlex
from collections import deque
from importlib.metadata import version
from typing import Any, Literal

from amsd.files import write_text
from amsd.places import in_text, in_value, places_of
from amsd.tracking.backend import Announce, Backend
from amsd.tracking.connection import connect
from amsd.tracking.entries import Entry, Picture, Table, Value
from amsd.tracking.names import Names
from amsd.tracking.protocol import FINISHED, RunInfo
from amsd.tracking.wandb_folders import files_of_a_run, refused_folder, settle
from amsd.training.events import Notice

#: Seconds that starting a run, and uploading what is left at its end, may take.
INIT_TIMEOUT = 30.0
FINISH_TIMEOUT = 12.0
#: Entries that W&B's process may hold unwritten when it dies; they are logged again.
_UNWRITTEN = 1000


class WandbBackend(Backend):
    """One W&B run."""

    def __init__(self, info: RunInfo, announce: Announce) -> None:
        """Open the run; say so if it is offline.

        Raises:
            wandb.Error, ValueError, OSError: it cannot even be offline.
        """
        self._info = info
        self._announce = announce
        self._run: Any = None
        self._axes: set[str] = set()
        self._notices: list[tuple[int, str, str]] = []
        self._recent: deque[Entry] = deque(maxlen=_UNWRITTEN)
        self._recovered = False
        mode = info.recipe.tracking.mode
        if mode == "disabled":
            return
        refused = refused_folder()
        if refused:
            place = info.run.path / "wandb"
            self._announce(Notice("wandb-folder", f"{refused}: W&B's files go to {place}.", info.resumed_from or 0))
        connection = connect(mode)
        if connection.mode != "disabled" and (moved := settle(info.run.path)):
            self._announce(Notice("wandb-folder", moved, info.resumed_from or 0))
        reason = connection.reason
        if connection.mode == "online":
            reason = self._online()
        if self._run is None and connection.mode != "disabled":
            self._run = _open(info, "offline")
        if reason is not None:
            self._say_not_online(connection.mode, reason)

    def log(self, entry: Entry) -> None:
        """Hand the values to W&B's process, or to a new one if that died."""
        if self._run is None:
            return
        self._recent.append(entry)
        try:
            self._write(entry)
        except _died() as error:
            self._recover(error)

    def close(self, status: str, error: str | None) -> None:
        """Upload what is left and close the run."""
        if self._run is None:
            return
        import wandb

        try:
            self._finish(status, error)
        except _died() as failure:
            self._recover(failure)
            self._finish(status, error)
        except (wandb.Error, TimeoutError) as failure:  # not all was uploaded in time
            _end_service()
            text = f"Not everything reached the W&B server ({failure}). Nothing is lost: {self._how_to_sync()}"
            self._announce(Notice("wandb-incomplete", text, self._position()))
        self._run = None

    def interrupt(self) -> None:
        """W&B's process does not answer any more: end it, so that the waiting call fails and another one takes over."""
        _kill_service()

    def _finish(self, status: str, error: str | None) -> None:
        if self._notices:
            import wandb

            table = wandb.Table(["step", "kind", "text"], [list(row) for row in self._notices])
            self._put("step", self._position(), {"notices": table})
        self._run.summary.update({"status": status} | ({"error": error} if error else {}))
        self._run.finish(exit_code=0 if status == FINISHED else 1)

    def _recover(self, failure: Exception) -> None:
        """Go on offline with a new process, from the entries that the dead one may not have written.

        Raises:
            OSError, wandb.Error: it died again, or no other can be started.
        """
        if self._recovered:
            raise failure
        self._recovered = True
        before = self._sync()
        _end_service()
        self._axes.clear()
        self._run = _open(self._info, "offline", again=True)
        how = f"Upload both parts later: `{before}`, then `{self._sync()}`."
        text = f"W&B's process died ({failure}). The run continues offline. {how}"
        self._announce(Notice("wandb-restarted", text, self._position()))
        for entry in list(self._recent):
            self._write(entry)

    def _write(self, entry: Entry) -> None:
        if entry.notice is not None:
            notice = entry.notice
            row = (notice.step, notice.kind, notice.text)
            if row not in self._notices:
                self._notices.append(row)
                self._run.alert(title=notice.kind, text=notice.text, level="WARN")
            return
        values = {name: _own(value) for name, value in entry.values.items()}
        self._put(entry.axis, entry.position, {name: value for name, value in values.items() if value is not None})

    def _put(self, axis: str, position: int, values: dict[str, Any]) -> None:
        """Log values over an axis that they are bound to when they are first seen."""
        for name in values.keys() - self._axes:
            self._run.define_metric(name, step_metric=axis)
        self._axes |= values.keys()
        self._run.log({axis: position, **values})

    def _position(self) -> int:
        steps = [entry.position for entry in self._recent]
        return max(steps, default=self._info.resumed_from or 0)

    def _online(self) -> str | None:
        import wandb

        try:
            self._run = _open(self._info, "online")
            if self._run.url:  # reports link to it
                write_text(self._info.run.path / "wandb" / "run-url", f"{self._run.url}\n")
        except (wandb.Error, OSError) as error:
            return f"the server refused or did not answer in {INIT_TIMEOUT:g} s ({error})"
        return None

    def _say_not_online(self, mode: str, reason: str) -> None:
        step = self._info.resumed_from or 0
        if mode == "disabled":
            self._announce(Notice("wandb-disabled", f"W&B is off: {reason}.", step))
            return
        self._announce(Notice("wandb-offline", f"W&B runs offline: {reason}. {self._how_to_sync()}", step))

    def _how_to_sync(self) -> str:
        return f"Upload later with `{self._sync()}`."

    def _sync(self) -> str:
        return f"wandb sync {shlex.quote(str(self._run.settings.sync_dir))}"


def _own(value: Value) -> Any:
    """A value as W&B has it; None for a picture that is gone."""
    import wandb

    match value:
        case Picture():
            image = value.image()
            return None if image is None else wandb.Image(image, caption=value.caption)
        case Table():
            return wandb.Table(list(value.columns), [list(row) for row in value.rows])
        case _:
            return value


def _died() -> tuple[type[Exception], ...]:
    """What the client raises when W&B's own process is gone."""
    from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

    return (ConnectionError, BrokenPipeError, MailboxClosedError, HandleAbandonedError)


def _kill_service() -> None:
    """End W&B's process if this one started it; that of an agent (WANDB_SERVICE) is left alone."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if child.name().startswith("wandb-core"):
                child.kill()


def _end_service() -> None:
    """End W&B's process now; what it would do at the end of Python would wait for the server once more."""
    import wandb

    _kill_service()
    with contextlib.suppress(OSError, wandb.Error):
        wandb.teardown()


def _open(info: RunInfo, mode: Literal["online", "offline"], again: bool = False) -> Any:
    import wandb

    with contextlib.suppress(ImportError):  # the client's own usage statistics: at exit they wait for the server again
        from wandb.analytics.opentelemetry.opentelemetry_proxy import disable

        disable()
    names = Names.of(info.recipe.tracking)
    return wandb.init(
        project=names.project,
        entity=names.entity,
        group=names.group,
        name=names.name or info.run.path.resolve().name,
        tags=names.tags,
        notes=names.notes and in_text(names.notes, places_of(info.recipe)),
        job_type=names.job_type,
        mode=mode,
        dir=files_of_a_run(info.run.path),
        id=_run_id(info, again),
        resume="allow",
        reinit="finish_previous",
        config=info.config | {"environment": _environment()},
        settings=wandb.Settings(
            silent=True,
            console="off",
            init_timeout=INIT_TIMEOUT,
            finish_timeout=FINISH_TIMEOUT,
            finish_timeout_raises=True,
            x_disable_meta=True,  # the client's own: host, command line, folders
            disable_git=_is_local_repository(),
            **{name: "" for name in ("host", "username") if f"WANDB_{name.upper()}" not in os.environ},
        ),
    )


def _environment() -> dict[str, str]:
    """What the run is made on, in place of W&B's own description, which names the host, its user and their folders."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    own = {"amsd": version("amsd"), "torch": torch.__version__, "python": platform.python_version()}
    return own | {"system": platform.system(), "device": device}


def _is_local_repository() -> bool:
    """Whether the repository that W&B would record comes from a folder of this machine."""
    try:
        from wandb.sdk.lib.gitlib import GitRepo

        url = GitRepo(remote="origin").remote_url or ""
    except Exception:  # noqa: BLE001  # the client's own; without it nothing is recorded
        return True
    return in_value(url) != url


def _run_id(info: RunInfo, again: bool) -> str:
    """Id of the W&B run: an agent's (WANDB_RUN_ID), or one that is kept beside the run's files for a resume."""
    given = os.environ.get("WANDB_RUN_ID")
    file = info.run.path / "wandb" / "run-id"
    if given is None and (again or info.resumed_from is not None) and file.is_file():
        kept = file.read_bytes()[:200].decode("utf-8", errors="replace").strip()
        if re.fullmatch(r"[\w-]{1,128}", kept):  # a damaged file is replaced
            return kept
    chosen = given or secrets.token_hex(4)
    write_text(file, chosen + "\n")
    return chosen
