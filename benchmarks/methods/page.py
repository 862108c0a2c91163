"""`docs/methods.md` and its plots, from the results of `benchmarks/methods`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from estimates import over_seeds
from parts import ALIGNMENT, CURVE, FACTORS, FINE, GRIDS, METHODS, METRICS, MODELS, REWARD, TILTS, Contender, Length
from plots import curves
from results import (
    TILT,
    FinishedRun,
    Timing,
    against,
    change,
    chosen,
    distance,
    efficiency,
    runs_of,
    swept_factors,
    timings,
)
from text import CURVES, EFFICIENCY, FINER, HEAD, KINDS, MEASURED, NAMES, NOT_SWEPT, READING, SECTION, SWEPT, TIMED

from amsd.recipe.cost import cost_per_trajectory

Found = Mapping[str, tuple[float, list[FinishedRun]]]
"""Method to the factor of its learning rate and its runs."""


def write_page(results: Path, page: Path, length: Length) -> None:
    """Write the page and its plots from the results of every length; what was not run is not there."""
    out, fine = results / length.name, results / FINE.name
    images = page.parent / "images"
    images.mkdir(parents=True, exist_ok=True)
    parts = [HEAD.format(kinds="\n".join(_kind(name, length) for name in METHODS), **_at_fifty_steps())]
    everything = {model: found for model in MODELS if (found := chosen(out, model))}
    if everything:
        counts = sorted({len(runs) for found in everything.values() for _, runs in found.values()})
        seeds = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
        parts.append(MEASURED.format(budget=length.budget, seeds=seeds, options=_options(length, everything)))
    for model, found in everything.items():
        times = timings(out, model)
        curves(images / f"methods-{model}.svg", {name: runs for name, (_, runs) in found.items()}, times)
        missing, swept = [name for name in METHODS if name not in found], len(swept_factors(out, model))
        parts += [
            SECTION.format(
                name=NAMES[model], model=model, recipe=MODELS[model], grid=_grid(model), times=_times(times),
                rates=SWEPT.format(count=swept) if swept > 1 else NOT_SWEPT,
            ),
            f"\nNot run yet: {'; '.join(missing)}.\n" if missing else "",
            "\n### At the end\n\n", _ends(model, found, times),
            "\n### Gain for the KL divergence spent\n\n", EFFICIENCY, _efficiencies(found),
        ]  # fmt: skip
        if swept > 1:
            parts += ["\n### The sweep of the learning rate\n\n", _sweep(out, model)]
    if "unet" in everything and (reference := runs_of(fine, "unet", "am", FACTORS[0])):
        parts += [FINER, _finer(reference, everything["unet"])]
    if "unet" in everything and (rows := _curve(results, length)):
        parts += [CURVES, _table(rows)]
    complete = len(everything) == len(MODELS) and all(len(found) == len(METHODS) for found in everything.values())
    page.write_text("".join([*parts, READING if complete else ""]), encoding="utf-8")


def _options(length: Length, found: Mapping[str, Found]) -> str:
    given = [f" --budget {length.budget}"] if length.budget != Length().budget else []
    given += [f" --checkpoints {length.checkpoints}"] if length.checkpoints != Length().checkpoints else []
    given += [f" --model {model}" for model in found] if len(found) < len(MODELS) else []
    return "".join(given)


def _kind(name: str, length: Length) -> str:
    recipe = Contender("unet", name, 1.0, 0).recipe(length)
    target, held = KINDS[name]
    needed = "needed" if recipe.method.needs_reward_gradient else "not needed"
    return f"| {name} | {target} | {needed} | {cost_per_trajectory(recipe).total:.3g} | {held} |"


def _at_fifty_steps() -> dict[str, float]:
    """F per trajectory of both methods of the curve with the sampler of the finer runs."""
    return {name: cost_per_trajectory(Contender("unet", name, 1.0, 0).recipe(FINE)).total for name in CURVE}


def _grid(model: str) -> str:
    """What replaces the recipe's grid, as a part of a sentence."""
    return "".join(f" with `{key} = {value}`" for key, value in GRIDS[model].items())


def _times(times: Mapping[str, Timing]) -> str:
    machines = sorted({timing.machine for timing in times.values()})
    return TIMED.format(machines=" and ".join(machines)) if machines else ""


def _ends(model: str, found: Found, times: Mapping[str, Timing]) -> str:
    reference = found["am"][1] if "am" in found else None
    heads = ["method", "rate", "seeds", "network calls", "seconds", "KL", "gain in reward", "nearer to the tilt, nats"]
    rows = [[*heads, "alignment", "pixel diversity", "gain over am"], ["---"] * (len(heads) + 3)]
    for name, (factor, runs) in found.items():
        last = [run.points[-1] for run in runs]
        seconds = times[name].seconds_per_call * last[0].forwards if name in times else None
        nearer = distance(runs)
        changes = [change(runs, metric).shown("+") for metric in METRICS]
        rows.append(
            [
                name, f"{Contender(model, name, factor, 0).rate:g}", str(len(runs)), f"{last[0].forwards:,.0f}",
                "–" if seconds is None else f"{seconds:.0f}",
                _kl(runs), changes[0],
                f"{-nearer.value:+.1f} ± {nearer.standard_error:.1f}", *changes[1:],
                "" if reference is None or name == "am" else against(runs, reference).shown("+"),
            ]
        )  # fmt: skip
    return _table(rows)


def _efficiencies(found: Found) -> str:
    reference = found["am"][1] if "am" in found else None
    rows = [["method", "gain/√KL", "minus that of am", "KL: gain at the checkpoints"], ["---"] * 4]
    for name, (_, runs) in found.items():
        steps = range(min(len(run.points) for run in runs))
        kls = [over_seeds([run.points[step].kl for run in runs]).value for step in steps]
        measured = [f"{kl:.1f}: {change(runs, REWARD, step).value:+.3f}" for step, kl in zip(steps, kls, strict=True)]
        beside = ""
        if reference is not None and name != "am":
            beside = against(runs, reference, lambda point: point.efficiencies).shown("+")
        rows.append([name, efficiency(runs).shown(), beside, ", ".join(measured)])
    return _table(rows)


def _finer(reference: Sequence[FinishedRun], found: Found) -> str:
    """Work to the rewards of the reference's checkpoints, by the methods that keep near the base."""
    names = [name for name in found if KINDS[name][1].endswith("λ")]
    rows = [["am, 50 steps: network calls", "gain", "alignment", *(f"{name}: calls to it" for name in names)]]
    rows.append(["---"] * len(rows[0]))
    for step in range(min(len(run.points) for run in reference)):
        gain, calls = change(reference, REWARD, step), reference[0].points[step].forwards
        cells = [_work_to(found[name][1], gain.value, calls) for name in names]
        rows.append([f"{calls:,.0f}", gain.shown("+"), change(reference, ALIGNMENT, step).shown("+"), *cells])
    return _table(rows)


def _curve(results: Path, length: Length) -> list[list[str]]:
    """Both methods at each lambda with runs of both, at the recipe's learning rate; none where only one lambda has."""
    rows = []
    for tilt in sorted([TILT, *TILTS]):
        out = results / (length if tilt == TILT else replace(length, tilt=tilt)).name
        first, second = (runs_of(out, "unet", name, FACTORS[0]) for name in CURVE)
        if first and second:
            cells = [cell for runs in (first, second) for cell in (_kl(runs), change(runs, REWARD).shown("+"))]
            difference = against(second, first, lambda point: point.efficiencies)
            rows.append([f"{tilt:g}", str(len(second)), *cells, efficiency(second).shown(), difference.shown("+")])
    heads = ["λ", "seeds", *(f"{name}: {what}" for name in CURVE for what in ("KL", "gain"))]
    heads += [f"{CURVE[1]}: gain/√KL", f"minus that of {CURVE[0]}"]
    return [heads, ["---"] * len(heads), *rows] if len(rows) > 1 else []


def _kl(runs: Sequence[FinishedRun]) -> str:
    found = over_seeds([run.points[-1].kl for run in runs])
    return f"{found.value:.1f}" + (f" ± {found.standard_error:.1f}" if len(runs) > 1 else "")


def _work_to(runs: Sequence[FinishedRun], gain: float, calls: float) -> str:
    """Mean over the seeds that get to the gain, and what share of the reference's calls that is."""
    found = [forwards for run in runs if (forwards := run.forwards_to(gain)) is not None]
    if not found:
        return "not reached"
    work = over_seeds(found).value
    some = "" if len(found) == len(runs) else f", {len(found)} of {len(runs)} seeds"
    return f"{work:,.0f} ({work / calls:.2f}{some})"


def _sweep(out: Path, model: str) -> str:
    """Nearness to the tilt, gain and change of alignment of seed 0 at every rate."""
    factors = sorted(swept_factors(out, model))
    rates = [f"{Contender(model, 'am', factor, 0).rate:g}" for factor in factors]
    rows = [["method", *rates], ["---"] * (len(rates) + 1)]
    for name in METHODS:
        found = [next(run for run in runs_of(out, model, name, factor) if run.seed == 0) for factor in factors]
        changes = [f"{run.change(REWARD):+.3f}, {run.change(ALIGNMENT):+.3f}" for run in found]
        nearer = [f"{-distance([run]).value:+.1f}" for run in found]
        rows.append([name, *(f"{nats} ({each})" for nats, each in zip(nearer, changes, strict=True))])
    return "Nats nearer to the tilt and, in brackets, gain and change of alignment, all of seed 0.\n\n" + _table(rows)


def _table(rows: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
