"""Plots of `docs/methods.md`: SVG, the same bytes for the same numbers, readable on a light and a dark page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("svg")
import matplotlib.pyplot as plt
from estimates import over_seeds
from parts import REWARD
from results import FinishedRun, RunPoint, change

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
AXES: Mapping[str, Callable[[RunPoint], float]] = {
    "network forward-equivalents": lambda point: point.forwards,
    "seconds of training": lambda point: point.seconds,
    "KL divergence from the base": lambda point: point.kl,
}


def curves(file: Path, found: Mapping[str, Sequence[FinishedRun]]) -> None:
    """Gain in reward of each method, with one standard error, against work, time and distance from the base."""
    figure, axes = plt.subplots(1, len(AXES), figsize=(3.5 * len(AXES), 3.4), sharey=True)
    for axis, (label, value) in zip(axes, AXES.items(), strict=True):
        for color, (name, runs) in zip(COLORS, found.items(), strict=False):
            steps = range(min(len(run.points) for run in runs))
            x = [0.0, *(over_seeds([value(run.points[step]) for run in runs]).value for step in steps)]
            gains = [change(runs, REWARD, step) for step in steps]
            y, error = [0.0, *(gain.value for gain in gains)], [0.0, *(gain.standard_error for gain in gains)]
            axis.plot(x, y, marker="o", markersize=3, color=color, label=name)
            low, high = ([a + sign * b for a, b in zip(y, error, strict=True)] for sign in (-1, 1))
            axis.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
        axis.set(xlabel=label)
    # Straight where the gain is linear in the root of the KL divergence, as the table has it.
    axes[-1].set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
    axes[-1].set(xlim=(0, 60), xticks=[1, 5, 10, 20, 40, 60], xlabel="KL divergence from the base, up to 60")
    axes[0].set(ylabel="gain in reward")
    axes[-1].legend(fontsize=8)
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)
