"""What every part of the check uses: the options, the lines of JSON, the time that is left, clocks and memory."""

from __future__ import annotations

import gc
import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

START = time.time()


@dataclass(frozen=True)
class Options:
    """The command line."""

    device: str = "cuda"
    tiny: bool = False
    budget: float = 520.0
    only: tuple[str, ...] = ()
    pytest_seconds: float = 100.0

    @property
    def cuda(self) -> bool:
        return self.device.startswith("cuda")


@dataclass
class Check:
    """One run of the check: its options, and everything that was found so far."""

    options: Options
    out: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    limits: dict[str, float] = field(default_factory=dict)
    """Measured rates of the card: `bf16`, `tf32`, `fp32` in TFLOP/s, `copy` in TB/s."""
    tflop: float = 0.0
    """One forward pass of the UNet for one image, in TFLOP."""
    bare: dict[tuple[str, int], float] = field(default_factory=dict)
    """Forward-equivalents per second of the bare network, by (way of calling, rows)."""

    @property
    def device(self) -> torch.device:
        return torch.device(self.options.device)

    @property
    def cuda(self) -> bool:
        return self.options.cuda

    @property
    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self.options.budget - (time.time() - START)

    @property
    def crashes(self) -> int:
        return sum("CRASH" in row for row in self.rows)

    def best(self) -> tuple[str, float]:
        """The fastest way of calling the bare network, and its rate (0 before it was measured)."""
        if not self.bare:
            return "", 0.0
        (what, rows), rate = max(self.bare.items(), key=lambda item: item[1])
        return f"{what}, {rows} rows", rate

    def say(self, part: str, **values: Any) -> None:
        """Print a finding and append it to the file."""
        row = {"t": round(time.time() - START, 1), "part": part, **values}
        self.rows.append(row)
        print(json.dumps(row), flush=True)
        with (self.out / "results.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def attempt(self, part: str, work: Callable[[], None], *, needs: float = 0.0, case: str = "") -> None:
        """Run a part unless it is not wanted or its time is not there; a crash is a finding and not an end."""
        named = {"case": case} if case else {}
        if self.options.only and part not in self.options.only:
            return
        if self.left < needs:
            self.say(part, **named, skipped=f"needs about {needs:.0f} s, {self.left:.0f} s left")
            return
        try:
            work()
        except (Exception, SystemExit) as error:  # noqa: BLE001 what fails is what this program is to find
            where = [line.strip() for line in traceback.format_exc().splitlines() if line.lstrip().startswith("File")]
            self.say(part, **named, CRASH=f"{type(error).__name__}: {str(error)[:300]}", where=where[-4:])
        self.clean()

    def clean(self) -> None:
        """Give memory back and forget its peak."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def sync(self) -> None:
        """Wait for the card."""
        if self.cuda:
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], Any], warm: int = 2, repeats: int = 5) -> float:
        """Median time of a call."""
        for _ in range(warm):
            work()
        self.sync()
        found = []
        for _ in range(repeats):
            start = time.perf_counter()
            work()
            self.sync()
            found.append(time.perf_counter() - start)
        return sorted(found)[len(found) // 2]

    def peak(self) -> float | None:
        """Largest memory of the card since the last `clean`, GiB."""
        return round(torch.cuda.max_memory_allocated() / 2**30, 2) if self.cuda else None

    def share_of_matrix_rate(self, forwards_per_second: float) -> float | None:
        """Share of the card's measured bf16 matrix rate."""
        if not self.limits.get("bf16"):
            return None
        return round(forwards_per_second * self.tflop / self.limits["bf16"], 3)
