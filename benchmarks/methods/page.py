"""`docs/methods.md` and its plots, from the runs of `benchmarks/methods`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from plots import curves
from results import ALIGNMENT, METRICS, REWARD, Run, against, change, chosen, over_seeds, runs_of, swept_rates
from runs import METHODS, RATES, Length, recipe_of
from text import HEAD, KINDS, LEVELS_NOTE, MEASURED, NOT_SWEPT, READING, SWEPT

from amsd.recipe.cost import cost_per_trajectory

LEVELS = (3.0, 20.0)
"""KL divergences at which gains are compared."""


def write_page(out: Path, page: Path, length: Length, seconds: bool) -> None:
    """Write the page and its plots; what was not run is not there."""
    images = page.parent / "images"
    images.mkdir(parents=True, exist_ok=True)
    parts = [HEAD.format(kinds="\n".join(_kind(name, length) for name in METHODS))]
    found = chosen(out)
    if found:
        curves(images / "methods.svg", {name: runs for name, (_, runs) in found.items()}, seconds)
        counts = sorted({len(runs) for _, runs in found.values()})
        seeds = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1]))) + " for each method"
        swept = len(swept_rates(out)) > 1
        rates = SWEPT.format(count=len(swept_rates(out))) if swept else NOT_SWEPT.format(rate=RATES[0])
        missing = [name for name in METHODS if name not in found]
        parts += [
            MEASURED.format(budget=length.budget, seeds=seeds, rates=rates, options=_options(length, swept)),
            f"\nNot run yet: {'; '.join(missing)}.\n" if missing else "",
            "\n## At the end\n\n", _ends(found, seconds),
            "\n## At equal KL divergence\n\n", _levels(found), LEVELS_NOTE,
            *(("\n## The sweep of the learning rate\n\nGain and, in brackets, change of alignment.\n\n", _sweep(out))
              if swept else ()),
            READING if not missing else "",
        ]  # fmt: skip
    page.write_text("".join(parts), encoding="utf-8")


def _options(length: Length, swept: bool) -> str:
    given = [f" --budget {length.budget}"] if length.budget != Length().budget else []
    given += [f" --checkpoints {length.checkpoints}"] if length.checkpoints != Length().checkpoints else []
    return "".join(given) + ("" if swept else " --no-sweep --seeds 1")


def _kind(name: str, length: Length) -> str:
    recipe = recipe_of(name, RATES[0], 0, length)
    target, held = KINDS[name]
    needed = "needed" if recipe.method.needs_reward_gradient else "not needed"
    return f"| {name} | {target} | {needed} | {cost_per_trajectory(recipe).total:.3g} | {held} |"


def _ends(found: dict[str, tuple[float, list[Run]]], seconds: bool) -> str:
    reference = found["am"][1] if "am" in found else None
    heads = ["method", "rate", "seeds", "network calls", *(["seconds"] if seconds else []), "KL", "gain in reward"]
    rows = [[*heads, "alignment", "pixel diversity", "gain over am"], ["---"] * (len(heads) + 3)]
    for name, (rate, runs) in found.items():
        last = [run.points[-1] for run in runs]
        time = [f"{over_seeds([point.seconds for point in last]).value:.0f}"] if seconds else []
        kl = over_seeds([point.kl for point in last])
        versus = "" if reference is None or name == "am" else against(runs, reference, REWARD).shown()
        rows.append(
            [
                name, f"{rate:g}", str(len(runs)), f"{last[0].forwards:,.0f}", *time,
                f"{kl.value:.1f}" + (f" ± {kl.error:.1f}" if len(runs) > 1 else ""),
                *(change(runs, metric).shown() for metric in METRICS), versus,
            ]
        )  # fmt: skip
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _levels(found: dict[str, tuple[float, list[Run]]]) -> str:
    heads = ["method", *(f"gain at KL {level:g}" for level in LEVELS), "KL: gain at the checkpoints"]
    rows = [heads, ["---"] * len(heads)]
    for name, (_, runs) in found.items():
        steps = range(min(len(run.points) for run in runs))
        kls = [over_seeds([run.points[step].kl for run in runs]).value for step in steps]
        measured = [f"{kl:.1f}: {change(runs, REWARD, step).value:+.3f}" for step, kl in zip(steps, kls, strict=True)]
        rows.append([name, *(_at_level(runs, level) for level in LEVELS), ", ".join(measured)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _at_level(runs: Sequence[Run], level: float) -> str:
    """Mean over the seeds that get there, and how many they are if not all."""
    gains = [gain for run in runs if (gain := run.gain_at(level)) is not None]
    if not gains:
        return "not reached"
    shown = over_seeds(gains).shown() if len(gains) > 1 else f"{gains[0]:+.3f}"
    shown += "*" if any(level < run.points[0].kl for run in runs) else ""
    return shown if len(gains) == len(runs) else f"{shown} ({len(gains)} of {len(runs)} seeds)"


def _sweep(out: Path) -> str:
    """Gain and change of alignment of seed 0 at every rate."""
    rates = sorted(swept_rates(out))
    rows = ["| method | " + " | ".join(f"{rate:g}" for rate in rates) + " |", "|---" * (len(rates) + 1) + "|"]
    for name in METHODS:
        cells = []
        for rate in rates:
            runs = [run for run in runs_of(out, name, rate) if run.seed == 0]
            cells.append(f"{runs[0].change(REWARD):+.3f} ({runs[0].change(ALIGNMENT):+.3f})" if runs else "not run")
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"
