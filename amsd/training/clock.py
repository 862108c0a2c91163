"""How the seconds of a step divide among its phases."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

COLLECTING = ("rollout", "reward gradient", "adjoint")
PHASES = (*COLLECTING, "loss", "optimizer")


class PhaseClock:
    """Adds up seconds per phase; waits for the device at the end of a phase so that its work is counted there."""

    def __init__(self, device: torch.device, announce: Callable[[str], None]) -> None:
        self._device = device
        self._announce = announce
        self._seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self._before = dict(self._seconds)
        """Seconds that were taken already."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the body as part of phase `name`."""
        self._announce(name)
        start = time.perf_counter()
        try:
            yield
        finally:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            self._seconds[name] += time.perf_counter() - start

    def take(self) -> dict[str, float]:
        """Seconds and share of every phase since the last call, as log values.

        `collection/share` is the collecting phases' share of all time so far: a buffer collects in few of its steps.
        """
        seconds, self._seconds = self._seconds, dict.fromkeys(PHASES, 0.0)
        total = sum(seconds.values()) or 1.0
        self._before = {name: self._before[name] + value for name, value in seconds.items()}
        collecting = sum(self._before[name] for name in COLLECTING) / (sum(self._before.values()) or 1.0)
        values = {f"seconds/{name.replace(' ', '_')}": value for name, value in seconds.items()}
        shares = {f"share/{name.replace(' ', '_')}": value / total for name, value in seconds.items()}
        return values | shares | {"seconds/total": sum(seconds.values()), "collection/share": collecting}
