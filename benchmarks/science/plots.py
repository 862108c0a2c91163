"""Plots of `docs/science.md`: SVG, the same bytes for the same numbers, readable on a light and a dark page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt
from estimates import Estimate
from results import PIXELS, REWARD, Setting

COLORS = ("#0072B2", "#D55E00", "#009E73")  # Okabe and Ito: told apart with any color vision
mpl.rcParams.update(
    {
        "svg.hashsalt": "amsd", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9,
        "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 9, "legend.frameon": False,
        "figure.facecolor": "white", "figure.constrained_layout.use": True,
    }
)  # fmt: skip


def reward_and_diversity(file: Path, values: Sequence[float], found: Sequence[Setting]) -> None:
    """Gain in reward and change of diversity against lambda."""
    figure, axes = plt.subplots(1, 2, figsize=(7.2, 2.8))
    for axis, metric, label in zip(
        axes, (REWARD, PIXELS), ("gain in reward", "change in pixel diversity"), strict=True
    ):
        _line(axis, values, [setting.gain(metric) for setting in found], COLORS[0])
        axis.set(xscale="log", xlabel="reward multiplier λ", ylabel=label)
        axis.set_xticks(values, [f"{value:g}" for value in values])
        axis.minorticks_off()
    _save(figure, file)


def modes_by_eta(file: Path, found: Mapping[tuple[str, float], Setting]) -> None:
    """Gain of the three guidance modes against the eta of fine-tuning."""
    figure, axis = plt.subplots(figsize=(5.2, 3))
    for color, mode in zip(COLORS, dict.fromkeys(mode for mode, _ in found), strict=False):
        points = sorted((eta, setting.gain(REWARD)) for (name, eta), setting in found.items() if name == mode)
        _line(axis, [eta for eta, _ in points], [gain for _, gain in points], color, mode)
    axis.set(xlabel="η of fine-tuning", ylabel="gain in reward", xticks=sorted({eta for _, eta in found}))
    axis.legend()
    _save(figure, file)


def adjoints(file: Path, counts: Sequence[int], pairs: Sequence[tuple[Setting, ...]]) -> None:
    """Gain with either adjoint by number of steps."""
    figure, axis = plt.subplots(figsize=(5.2, 3))
    for index, label in enumerate(("$a_k$ (reference)", "$a_{k+1}$")):
        _line(axis, counts, [pair[index].gain(REWARD) for pair in pairs], COLORS[1 - index], label)
    axis.set(xscale="log", xlabel="inference steps N", ylabel="gain in reward")
    axis.set_xticks(counts, [str(count) for count in counts])
    axis.minorticks_off()
    axis.legend()
    _save(figure, file)


def gain_against_time(file: Path, curves: Sequence[tuple[str, Sequence[tuple[float, Setting]]]]) -> None:
    """Gain at every evaluated step against seconds of training."""
    figure, axis = plt.subplots(figsize=(5.2, 3))
    for color, (name, curve) in zip(COLORS, curves, strict=False):
        _line(axis, [at for at, _ in curve], [setting.gain(REWARD) for _, setting in curve], color, name)
    axis.set(xscale="log", xlabel="seconds of training", ylabel="gain in reward")
    seconds = [at for _, curve in curves for at, _ in curve]
    ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if min(seconds) <= tick <= max(seconds)]
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.legend()
    _save(figure, file)


def _line(axis: Any, x: Sequence[float], y: Sequence[Estimate], color: str, label: str | None = None) -> None:
    axis.axhline(0, color="#999999", linewidth=0.8, zorder=0)
    axis.errorbar(
        x, [point.value for point in y], yerr=[point.standard_error for point in y], marker="o", markersize=4,
        capsize=3, color=color, label=label,
    )  # fmt: skip


def _save(figure: Any, file: Path) -> None:
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)
