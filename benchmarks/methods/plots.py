"""Plots of `docs/methods.md`: SVG, the same bytes for the same numbers, readable on a light and a dark page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("svg")
import matplotlib.pyplot as plt
from estimates import Estimate, over_seeds
from matplotlib.axes import Axes
from parts import REWARD
from results import FinishedRun, Timing, change

# Okabe and Ito, and a lighter green.
COLORS = (
    "#0072B2",
    "#56B4E9",
    "#009E73",
    "#8FD19E",
    "#D55E00",
    "#CC79A7",
    "#E69F00",
    "#999999",
    "#000000",
)
mpl.rcParams.update(
    {
        "svg.hashsalt": "amsd", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9,
        "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "figure.facecolor": "white",
        "figure.constrained_layout.use": True,
    }
)  # fmt: skip


def curves(file: Path, found: Mapping[str, Sequence[FinishedRun]], times: Mapping[str, Timing]) -> None:
    """Gain in reward of each method, with one standard error, against work, time and distance from the base."""
    labels = ["network forward-equivalents", "seconds of training", "KL divergence from the base"]
    figure, axes = plt.subplots(1, len(labels), figsize=(3.5 * len(labels), 3.4), sharey=True)
    for color, (name, runs) in zip(COLORS, found.items(), strict=False):
        steps = range(min(len(run.points) for run in runs))
        gains = [change(runs, REWARD, step) for step in steps]
        work = [over_seeds([run.points[step].forwards for run in runs]).value for step in steps]
        seconds = [times[name].seconds_per_call * calls for calls in work] if name in times else None
        divergence = [over_seeds([run.points[step].kl for run in runs]).value for step in steps]
        for axis, x in zip(axes, (work, seconds, divergence), strict=True):
            if x is not None:
                _curve(axis, x, gains, color, name)
    for axis, label in zip(axes, labels, strict=True):
        axis.set(xlabel=label)
    # Straight where the gain is linear in the root of the KL divergence.
    axes[-1].set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
    axes[-1].set(xlim=(0, 60), xticks=[1, 5, 10, 20, 40, 60], xlabel="KL divergence from the base, up to 60")
    axes[0].set(ylabel="gain in reward")
    axes[-1].legend(fontsize=8)
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


def _curve(axis: Axes, x: Sequence[float], gains: Sequence[Estimate], color: str, name: str) -> None:
    values, errors = [0.0, *(gain.value for gain in gains)], [0.0, *(gain.standard_error for gain in gains)]
    axis.plot([0.0, *x], values, marker="o", markersize=3, color=color, label=name)
    low, high = ([a + sign * b for a, b in zip(values, errors, strict=True)] for sign in (-1, 1))
    axis.fill_between([0.0, *x], low, high, color=color, alpha=0.15, linewidth=0)
