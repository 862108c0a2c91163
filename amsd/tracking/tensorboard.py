"""TensorBoard: event files under `RUN/tensorboard/`; every value over optimizer steps."""

from __future__ import annotations

import json

from amsd.tracking.backend import Announce, Backend
from amsd.tracking.entries import Entry, Picture, Table
from amsd.tracking.protocol import RunInfo


class TensorBoardBackend(Backend):
    """Scalars, pictures, and tables and texts as Markdown. A resume hides the points that are made again."""

    def __init__(self, info: RunInfo, announce: Announce) -> None:
        """Raises `ImportError` without the package `tensorboard` (extra `tensorboard`)."""
        from torch.utils.tensorboard import SummaryWriter

        purge = None if info.resumed_from is None else info.resumed_from + 1
        self._writer = SummaryWriter(str(info.run.path / "tensorboard"), purge_step=purge)
        if purge is None:
            recipe = json.dumps(info.config, indent=2)
            self._writer.add_text("recipe", f"```json\n{recipe}\n```", 0)

    def log(self, entry: Entry) -> None:
        """Write the values."""
        if entry.notice is not None:
            self._writer.add_text("notices", f"**{entry.notice.kind}**: {entry.notice.text}", entry.position)
        for name, value in entry.values.items():
            match value:
                case Picture():
                    self._picture(name, value, entry.position)
                case Table():
                    self._writer.add_text(name, markdown(value), entry.position)
                case str():
                    self._writer.add_text(name, value, entry.position)
                case _:
                    self._writer.add_scalar(name, value, entry.position)

    def close(self, status: str, error: str | None) -> None:
        """Write the status and close the file."""
        self._writer.add_text("status", status if error is None else f"{status}: {error}")
        self._writer.close()

    def _picture(self, name: str, picture: Picture, position: int) -> None:
        import numpy as np

        image = picture.image()
        if image is not None:
            self._writer.add_image(name, np.asarray(image), position, dataformats="HWC")


def markdown(table: Table) -> str:
    """A table in Markdown."""

    def line(cells: tuple[object, ...]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(table.columns), line(("---",) * len(table.columns)), *map(line, table.rows)])
