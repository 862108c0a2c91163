"""How fast amsd is, against the reference's procedure and against what it cannot do without: `nox -s bench`.

    python benchmarks/speed.py                       # everything; about an hour of one idle CPU core
    python benchmarks/speed.py --only counts,step    # of counts, step, evaluation, start-up, processes, growth, race

Runs on the embedded model, so it needs no GPU and downloads nothing. Results go to `benchmarks/results/` (JSON, a
table, a plot) and into docs/performance.md. The race keeps a file for each run: a stopped command goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts that were asked for and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "performance.md")
    parser.add_argument("--only", default="", help="comma-separated parts; unset: all; `none` only writes the page")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the race")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each interleaved measurement")
    found = parser.parse_args(arguments)
    found.out.mkdir(parents=True, exist_ok=True)

    import torch

    torch.set_num_threads(1)  # two were slower than one on networks of this size
    results = run(found.out, tuple(name for name in found.only.split(",") if name), found.seeds, found.rounds)
    from speed_parts import page

    page.write(found.out, results, found.docs if found.docs.is_file() else None)


def run(out: Path, only: Sequence[str], seeds: int, rounds: int) -> dict[str, Any]:
    """Results of the parts, on top of those that an earlier run of other parts has left in `speed.json`.

    Raises:
        SystemExit: a part's name is unknown.
    """
    from speed_parts import counts, growth, page, race, ratios, startup

    parts: dict[str, Callable[[], Any]] = {
        "counts": lambda: counts.measure(rounds=rounds),
        "step": lambda: ratios.step_against_bare_calls(rounds),
        "evaluation": lambda: ratios.evaluation_against_diffusers(rounds),
        "start-up": startup.start_up,
        "processes": startup.processes,
        "growth": lambda: growth.grow(rounds),
    }
    if unknown := set(only) - {*parts, "race", "none"}:
        raise SystemExit(f"unknown parts: {', '.join(sorted(unknown))}; there are {', '.join([*parts, 'race'])}")
    stored = out / "speed.json"
    results: dict[str, Any] = json.loads(stored.read_text()) if stored.exists() else {}
    for name, work in parts.items():
        if not only or name in only:
            print(f"{name} ...", flush=True)
            results[name] = work()
            results["machine"] = page.machine()
            stored.write_text(json.dumps(results, indent=1) + "\n")  # what was measured stays, whatever comes
    if not only or "race" in only:
        print("race ...", flush=True)
        race.run_missing(out, race.Race(), seeds)
    results.setdefault("machine", page.machine())
    return results


if __name__ == "__main__":
    main()
