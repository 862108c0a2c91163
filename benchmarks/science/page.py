"""`docs/science.md` and its plots, from the runs of `benchmarks/science`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median

import plots
from experiments import ADJOINTS, SWEEP, assignments
from results import (
    ALIGNMENT,
    CLASSIFIER,
    PIXELS,
    REWARD,
    Setting,
    at_step,
    evaluated_steps,
    logged,
    seconds_until,
    settings,
    sweep_settings,
)
from text import CLOSED_FORM, HEAD, READING, TITLES

from amsd.recipe import load_recipe
from amsd.recipe.cost import forwards_per_step

COLUMNS = "| setting | seeds | gain | alignment, change | pixel diversity, change | classifier diversity, change |"


def write_page(out: Path, page: Path) -> None:
    """Write the page and its plots; experiments without finished runs are named as such."""
    images = page.parent / "images"
    images.mkdir(parents=True, exist_ok=True)
    sections = {
        "lambda": _lambda,
        SWEEP: _modes,
        "eta": _eta,
        "adjoint": _adjoint,
        "outliers": _outliers,
        "buffer": _buffer,
        "flow": _flow,
    }
    parts = [HEAD]
    for name, section in sections.items():
        parts.append(f"\n## {TITLES[name]}\n")
        body = section(out, images)
        parts.append(f"{body}\n{READING[name]}\n" if body else "\nNot run yet.\n")
    page.write_text("".join(parts), encoding="utf-8")


def _lambda(out: Path, images: Path) -> str:
    found = settings(out, "lambda")
    if not found:
        return ""
    values = [float(setting.name.removeprefix("λ = ")) for setting in found]
    plots.reward_and_diversity(images / "lambda.svg", values, found)
    return _picture("lambda", "Reward and diversity against lambda") + _table(found)


def _modes(out: Path, images: Path) -> str:
    parts = []
    for eta in (1.0, 0.0):
        found = {mode: setting for (mode, noise), setting in _sweep(out, eta).items() if noise == 1}
        if not found:
            return ""
        reference = found["CFG trajectories"]
        table = _table(list(found.values()), list(found), versus=("CFG trajectories", reference))
        parts.append(f"\nEvaluated at η = {eta:g}, guidance 5:\n" + table)
    return "".join(parts)


def _eta(out: Path, images: Path) -> str:
    found = _sweep(out, 1.0)
    if not found:
        return ""
    plots.modes_by_eta(images / "cfg-eta.svg", found)
    parts = [_picture("cfg-eta", "Gain against the noise level of fine-tuning, for the three modes")]
    modes = dict.fromkeys(mode for mode, _ in found)
    for mode in modes:
        rows = [setting for (name, _), setting in sorted(found.items(), key=lambda item: item[0][1]) if name == mode]
        table = _table(rows, [row.name.rpartition(", ")[2] for row in rows], versus=("η = 1", found[mode, 1.0]))
        parts.append(f"\n{mode}:\n" + table)
    return "".join(parts)


def _adjoint(out: Path, images: Path) -> str:
    found = {setting.name: setting for setting in settings(out, "adjoint")}
    counts = [count for count in CLOSED_FORM if f"N = {count}, a_k" in found and f"N = {count}, a_{{k+1}}" in found]
    if not counts:
        return ""
    lines = [
        "\n| steps N | gain with a_k | gain with a_{k+1} | paired difference | missing with a_k at the fixed point |\n"
        "|---|---|---|---|---|\n"
    ]
    pairs = [tuple(found[f"N = {count}, {name}"] for name in ADJOINTS) for count in counts]
    for count, (current, after) in zip(counts, pairs, strict=True):
        low, high = current.gain(REWARD), after.gain(REWARD)
        lines.append(
            f"| {count} | {low.shown('+')} | {high.shown('+')} | {after.against(current, REWARD).shown('+')} "
            f"| {CLOSED_FORM[count]:.0%} |\n"
        )
    plots.adjoints(images / "adjoint.svg", counts, pairs)
    return _picture("adjoint", "Gain with a_k and with a_(k+1) by number of steps") + "".join(lines)


def _outliers(out: Path, images: Path) -> str:
    found = settings(out, "outliers")
    return _table(found, versus=("the mask", found[0])) if found else ""


def _buffer(out: Path, images: Path) -> str:
    found = settings(out, "buffer")
    if len(found) < 2:
        return ""
    on_policy, *buffered = found
    plots.gain_against_time(images / "buffer.svg", [(setting.name, _curve(setting)) for setting in found])
    return (
        _picture("buffer", "Gain against seconds of training")
        + _cost(found)
        + "\nAt equal updates:\n"
        + _table(found, versus=("on-policy", on_policy))
        + "\nAt equal wall time (on-policy at the last checkpoint it reached in the buffer run's time):\n"
        + _equal_time(on_policy, buffered)
    )


def _flow(out: Path, images: Path) -> str:
    found, modes = settings(out, "flow"), {each.name: each for each in settings(out, "flow-modes")}
    if not found or "CFG trajectories" not in modes:
        return ""
    return (
        _table(found, versus=("the recipe", found[0]))
        + _divergence(found)
        + "\nThe modes of guidance, evaluated at η = 1, guidance 3:\n"
        + _table(list(modes.values()), versus=("CFG trajectories", modes["CFG trajectories"]))
    )


def _divergence(found: Sequence[Setting]) -> str:
    """Gain and KL, mean of the last five updates."""
    lines = ["\n| setting | gain | KL | gradient norm, median |\n|---|---|---|---|\n"]
    for setting in found:
        kl = mean(mean(logged(run, "kl")[-5:]) for run in setting.runs)
        norm = mean(median(logged(run, "gradient_norm")) for run in setting.runs)
        lines.append(f"| {setting.name} | {setting.gain(REWARD).shown('+')} | {kl:.1f} | {norm:.1f} |\n")
    return "".join(lines)


def _cost(found: Sequence[Setting]) -> str:
    lines = [
        "\n| setting | UNet forward-equivalents per update | seconds per update | lowest ESS/n |\n|---|---|---|---|\n"
    ]
    reference = _cost_of(found[0])
    for setting in found:
        forwards, seconds = _cost_of(setting)
        ess = [min(logged(run, "ess") or [1.0]) for run in setting.runs]
        fewer = "" if setting is found[0] else f" ({reference[0] / forwards:.1f} times fewer)"
        quicker = "" if setting is found[0] else f" ({reference[1] / seconds:.1f} times fewer)"
        lines.append(f"| {setting.name} | {forwards:,.0f}{fewer} | {seconds:.2f}{quicker} | {min(ess):.2f} |\n")
    return "".join(lines)


def _cost_of(setting: Setting) -> tuple[float, float]:
    recipe = load_recipe("shapes", assignments("buffer", setting.name, 0))
    return forwards_per_step(recipe), mean(mean(logged(run, "seconds/total")) for run in setting.runs)


def _equal_time(on_policy: Setting, buffered: Sequence[Setting]) -> str:
    lines = ["\n| setting | updates | gain | on-policy updates in that time | gain | paired difference |\n"]
    lines.append("|---|---|---|---|---|---|\n")
    for setting in buffered:
        pairs = zip(setting.runs, on_policy.runs, strict=True)
        steps = {mine: _reached(mine, seconds_until(other)) for other, mine in pairs}
        stopped = at_step(on_policy.name, on_policy.runs, "", steps)
        updates = max(evaluated_steps(setting.runs[0]))
        lines.append(
            f"| {setting.name} | {updates} | {setting.gain(REWARD).shown('+')} "
            f"| {', '.join(str(step) for step in steps.values())} | {stopped.gain(REWARD).shown('+')} "
            f"| {setting.against(stopped, REWARD).shown('+')} |\n"
        )
    return "".join(lines)


def _reached(run: Path, budget: dict[int, float]) -> int:
    """The last evaluated step of a run within the whole time of another; the first one where it reached none."""
    times, limit = seconds_until(run), max(budget.values())
    steps = evaluated_steps(run)
    return max((step for step in steps if times[step] <= limit), default=steps[0])


def _curve(setting: Setting) -> list[tuple[float, Setting]]:
    """(mean seconds, setting) at every evaluated step."""
    steps = evaluated_steps(setting.runs[0])
    return [
        (
            mean(seconds_until(run)[step] for run in setting.runs),
            at_step(setting.name, setting.runs, "", dict.fromkeys(setting.runs, step)),
        )
        for step in steps
    ]


def _sweep(out: Path, eta: float) -> dict[tuple[str, float], Setting]:
    return sweep_settings(out, f"eta{eta:g}-")


def _table(found: Sequence[Setting], names: Sequence[str] = (), versus: tuple[str, Setting] | None = None) -> str:
    extra = f" gain minus the gain of {versus[0]} |" if versus else ""
    lines = [f"\n{COLUMNS}{extra}\n|{'---|' * (6 + bool(versus))}\n"]
    for name, setting in zip(names or [setting.name for setting in found], found, strict=True):
        changes = " | ".join(setting.gain(metric).shown("+") for metric in (ALIGNMENT, PIXELS, CLASSIFIER))
        against = ""
        if versus:
            against = " |" if setting is versus[1] else f" {setting.against(versus[1], REWARD).shown('+')} |"
        lines.append(f"| {name} | {len(setting.runs)} | {setting.gain(REWARD).shown('+')} | {changes} |{against}\n")
    return "".join(lines)


def _picture(name: str, text: str) -> str:
    return f"\n![{text}](images/{name}.svg)\n"
