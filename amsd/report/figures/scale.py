"""Axes: from numbers to pixels, with ticks at round numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["linear", "log", "sqrt"]
#: Ratio of largest to smallest value of a searched key from which its axis is logarithmic.
_DECADES = 30
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Scale:
    """A monotone map of [low, high] to pixels [start, end] (end < start on a vertical axis)."""

    low: float
    high: float
    start: float
    end: float
    kind: Kind = "linear"
    whole: bool = False
    """Whether only whole numbers exist, such as optimizer steps: none is marked between them."""

    def __call__(self, value: float) -> float:
        """Pixel of a value; a log axis takes values at or below zero to its lower end."""
        low, high = _warp(self.low, self.kind), _warp(self.high, self.kind)
        if self.kind == "log" and value <= 0:
            return self.start
        share = (_warp(value, self.kind) - low) / (high - low)
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """Round numbers inside the range, about `count` of them."""
        if self.kind == "log":
            return _log_ticks(self.low, self.high, count)
        if self.kind == "sqrt":
            return _sqrt_ticks(self.high, count)
        return _linear_ticks(self.low, self.high, count, self.whole)


def scale_for(
    values: Iterable[float], start: float, end: float, kind: Kind = "linear", include: Iterable[float] = ()
) -> Scale:
    """A scale that shows all finite values with a little room; `include` are values that must be inside."""
    pool = [value for value in (*values, *include) if math.isfinite(value) and (kind != "log" or value > 0)]
    if not pool:
        pool = [1.0, 10.0] if kind == "log" else [0.0, 1.0]
    low, high = min(pool), max(pool)
    if kind == "log":
        low, high = (low / 1.3, high * 1.3) if high / low < 1.5 else (low / 1.12, high * 1.12)
    elif kind == "sqrt":
        low, high = 0.0, (high * 1.12 or 1.0)
    else:
        room = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
        low, high = low - room, high + room
    return Scale(low, high, start, end, kind)


def searched_scale(values: list[float], start: float, end: float, log: bool) -> Scale:
    """The scale of a searched key or a result; `log`: it was searched on a logarithmic scale."""
    low, high = min(values), max(values)
    log = low > 0 and (log or high / low > _DECADES)
    return scale_for(values, start, end, kind="log" if log else "linear")


def number(value: float, digits: int = 3) -> str:
    """A short decimal with a true minus sign: three significant digits, powers of ten only where they help."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e5 or size < 1e-4:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        text = f"{float(mantissa):g}e{int(exponent)}"
    elif size >= 10 ** (digits - 1):
        text = f"{value:.0f}"
    else:
        text = f"{value:.{digits}g}"
    return text.replace("-", MINUS)


def tick_labels(ticks: list[float]) -> list[str]:
    """Labels of one axis: the same number of decimals throughout."""
    steps = [abs(b - a) for a, b in itertools.pairwise(ticks) if b != a]
    size = max((abs(tick) for tick in ticks), default=0)
    even = bool(steps) and max(steps) < 1.01 * min(steps)
    if not even or size >= 1e5 or size < 1e-3:
        return [number(tick, 2) for tick in ticks]
    decimals = max(0, -math.floor(math.log10(min(steps)) + 1e-9))
    decimals += round(min(steps) * 10**decimals * 10) % 10 != 0  # a step of 2.5
    return [f"{tick + 0.0:.{decimals}f}".replace("-", MINUS) for tick in ticks]


def _warp(value: float, kind: Kind) -> float:
    if kind == "log":
        return math.log10(value)
    return math.sqrt(max(value, 0.0)) if kind == "sqrt" else value


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)


def _linear_ticks(low: float, high: float, count: int, whole: bool) -> list[float]:
    step = _round_step((high - low) / max(count, 1))
    if whole and step != round(step):
        step = max(1.0, 5 * math.ceil(step / 5) if step > 2 else math.ceil(step))  # 2.5 becomes 5
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _log_ticks(low: float, high: float, count: int) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        ticks = [f * 10.0**p for p in range(first, last + 1) for f in factors if low <= f * 10.0**p <= high]
        if len(ticks) >= 3:
            break
    stride = max(1, round(len(ticks) / (count + 1)))
    return ticks[::stride]


def _sqrt_ticks(high: float, count: int) -> list[float]:
    """Round numbers whose square roots lie about evenly, zero first."""
    ticks = [0.0]
    for index in range(1, count + 1):
        wanted = high * (index / count) ** 2
        if wanted <= 0:
            continue
        power = 10.0 ** math.floor(math.log10(wanted))
        tick = max((f * power for f in (1, 2, 5) if f * power <= wanted * 1.001), default=power)
        if tick > ticks[-1]:
            ticks.append(tick)
    return ticks
