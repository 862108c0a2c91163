"""trackio (Hugging Face): a local project that `trackio show --project NAME` opens; TRACKIO_DIR says where it lies."""

from __future__ import annotations

from typing import Any

from amsd.tracking.backend import Announce, Backend
from amsd.tracking.entries import STEP, Entry, Picture, Table, Value
from amsd.tracking.names import Names
from amsd.tracking.protocol import RunInfo


class TrackioBackend(Backend):
    """Scalars, tables and pictures over optimizer steps; notices as alerts."""

    def __init__(self, info: RunInfo, announce: Announce) -> None:
        """Raises `ImportError` without the package `trackio` (extra `trackio`)."""
        import trackio

        names = Names.of(info.recipe.tracking)
        self._trackio = trackio
        self._run = trackio.init(
            project=names.project,
            name=names.name or info.run.path.resolve().name,
            group=names.group,
            config=info.config,
            resume="never" if info.resumed_from is None else "allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, entry: Entry) -> None:
        """Hand the values to trackio's own thread."""
        if entry.notice is not None:
            self._run.alert(entry.notice.kind, entry.notice.text)
        values = {name: self._own(value) for name, value in entry.values.items()}
        kept = {name: value for name, value in values.items() if value is not None}
        if kept:
            axis = {} if entry.axis == STEP else {entry.axis: entry.position}  # `step` is trackio's own
            self._run.log({**axis, **kept}, step=entry.position)

    def close(self, status: str, error: str | None) -> None:
        """Write what is left."""
        self._run.log({"status": status if error is None else f"{status}: {error}"})
        self._run.finish()

    def _own(self, value: Value) -> Any:
        match value:
            case Picture():
                image = value.image()
                return None if image is None else self._trackio.Image(image, caption=value.caption)
            case Table():
                return self._trackio.Table(columns=list(value.columns), data=[list(row) for row in value.rows])
            case _:
                return value
