"""The results as JSON, as a table for people, as a plot, and as the figures of docs/performance.md."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from speed_parts import growth, race, sizing

LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "peft", "numpy")


def machine() -> dict[str, Any]:
    """What the figures were measured on; no name of the machine."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return {
        "processor": found.group(1).strip() if found else platform.processor() or platform.machine(),
        "cores": os.cpu_count(), "threads used": 1,
        "load average (1, 5, 15 minutes)": [round(value, 1) for value in os.getloadavg()],
        "system": platform.system(), "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }  # fmt: skip


def outcomes(points: Mapping[tuple[str, int], Sequence[race.RacePoint]]) -> dict[str, list[race.RaceOutcome]]:
    """What amsd needed in every seed that both sides have run."""
    found: dict[str, list[race.RaceOutcome]] = {}
    for (name, seed), mine in points.items():
        its = points.get(("reference", seed))
        if name != "reference" and its is not None:
            found.setdefault(name, []).append(race.outcome(its, mine, seed))
    return found


def lines(results: Mapping[str, Any], points: Mapping[tuple[str, int], Sequence[race.RacePoint]]) -> Iterator[str]:
    """The tables in Markdown; a part that was not run has none."""
    if counts := results.get("counts"):
        yield from (
            "| procedure | N | guidance | forward-equivalents per trajectory | processor seconds |",
            "|---|---|---|---|---|",
        )
        for row in counts:
            yield (
                f"| {row['procedure']} | {row['steps']} | {row['guidance']:g} | {row['forwards']:.1f} "
                f"| {row['seconds']:.3f} |"
            )
        yield ""
    if points:
        yield from _race(points)
    for name, title in (
        ("step", "A training step of `shapes` against its network calls alone"),
        ("evaluation", "An evaluation against the plain diffusers pipeline and the reward"),
    ):
        if found := results.get(name):
            seconds = ", ".join(f"{way} {value:.2f} s" for way, value in found["seconds"].items())
            yield from (f"{title}: **{found['ratio']:.2f}** times ({seconds}; medians).", "")
    if found := results.get("start-up"):
        yield from _start_up(found)
    if found := results.get("processes"):
        yield f"One more update, processor seconds of all processes together, by their number: {_listed(found)}."
        yield ""
    for name, values in results.get("growth", {}).items():
        yield (
            f"Processor seconds per update by {name}: {_listed(values)}; "
            f"exponent over the range {growth.exponent(values):.2f} (1 is linear)."
        )
        yield ""


def _race(points: Mapping[tuple[str, int], Sequence[race.RacePoint]]) -> Iterator[str]:
    yield from (
        "| | seed | work, share of the reference's | processor time, share | difference of the held-out reward there |",
        "|---|---|---|---|---|",
    )
    for name, found in sorted(outcomes(points).items()):
        for one in found:
            shares = ("not reached", "not reached") if one.work is None else (f"{one.work:.2f}", f"{one.time:.2f}")
            yield (
                f"| {name} | {one.seed} | {shares[0]} | {shares[1]} "
                f"| {one.difference:+.3f} ± {one.standard_error:.3f} |"
            )
        reached = [one for one in found if one.work is not None]
        if reached:
            work, time = fmean(o.work or 0 for o in reached), fmean(o.time or 0 for o in reached)
            yield f"| **{name}** | mean of {len(reached)} of {len(found)} | **{work:.2f}** | **{time:.2f}** | |"
    gains = [its[-1].reward - its[0].reward for (name, _), its in points.items() if name == "reference"]
    yield from (
        "",
        f"The reference's procedure raises the held-out reward by {', '.join(f'{g:.3f}' for g in gains)}.",
        "",
    )


def _start_up(found: Mapping[str, Any]) -> Iterator[str]:
    for name in ("without bytecode", "with bytecode"):
        values = found[name]
        yield (
            f"Start-up to the end of a command of one step, {name}: {values['processor']:.1f} s of processor time "
            f"({values['wall']:.1f} s on the clock; the step itself {values['first step']:.1f} s)."
        )
    imports = found["imports"]
    yield (
        f"Of that, {imports['the libraries']:.1f} s go to the imports that any diffusers training script makes (torch, "
        f"diffusers' Stable Diffusion, transformers' CLIP, accelerate), {imports['torch']:.1f} s of them to torch: "
        "measured in children that import nothing else."
    )
    yield ""


def _listed(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name}: {value:.2f}" for name, value in values.items())


def plot(file: Path, points: Mapping[tuple[str, int], Sequence[race.RacePoint]]) -> None:
    """Held-out reward against work, one line per run; the same bytes for the same numbers."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams.update({"svg.hashsalt": "amsd", "svg.fonttype": "none", "font.size": 9, "legend.frameon": False,
                         "axes.spines.top": False, "axes.spines.right": False, "figure.facecolor": "white",
                         "figure.constrained_layout.use": True})  # fmt: skip
    colors = dict(zip(race.RUNNERS, ("#D55E00", "#0072B2", "#009E73"), strict=True))
    figure, axis = plt.subplots(figsize=(5.6, 3.2))
    for (name, seed), found in sorted(points.items()):
        label = name if seed == 0 else None
        axis.plot([p.forwards / 1000 for p in found], [p.reward for p in found], "o-", color=colors[name],
                  markersize=3, linewidth=1, label=label)  # fmt: skip
    axis.set(xlabel="network work, thousands of forward-equivalents", ylabel="held-out reward")
    axis.legend()
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


def write(out: Path, results: Mapping[str, Any], docs: Path | None) -> None:
    """Write `speed.json`, `speed.md`, `race.svg` into `out`, and the figures between the marks of the page."""
    points = race.read(out)
    found = list(lines(results, points))
    (out / "speed.json").write_text(json.dumps(results, indent=1) + "\n")
    header = [f"{results['machine']['processor']}, {results['machine']['cores']} cores, one thread.", ""]
    (out / "speed.md").write_text("\n".join([*header, *found]).rstrip() + "\n")
    if points:
        plot(out / "race.svg", points)
    if docs is not None:
        text = replaced(docs.read_text(), "measured", "\n".join([*header, *found]).strip())
        docs.write_text(replaced(text, "computed", "\n".join(sizing.table())))


def replaced(page: str, name: str, content: str) -> str:
    """The page with `content` between `<!-- name -->` and `<!-- /name -->`.

    Raises:
        ValueError: the page has no such marks.
    """
    begin, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
    head, found, rest = page.partition(begin)
    if not found or end not in rest:
        raise ValueError(f"the page lacks {begin.strip()!r}, an empty line and {end.strip()!r}")
    return head + begin + content + end + rest.split(end, 1)[1]
