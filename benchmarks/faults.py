"""Disturbs runs in every way that is not their last step, resumes them, and prints what was lost: `nox -s faults`.

    python -m benchmarks.faults --kills 60 --ends 20 --disk 10 --damage 40 --wandb 14 --edges 60 --fuzz 10000

Runs of a tiny Stable Diffusion are killed at chosen and at random moments, ended by the signals that schedulers send,
given a file system that refuses files beyond a size, damaged file by file, and tracked with a W&B that dies; each is
resumed, and its log and weights are compared with those of a run that was never disturbed. Fuzzed input is read by
everything that reads input; a second process does that, and the numbers at the edges, beside the other rows. What is
done is kept in `--results`: the same command goes on after a cut.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks.fault_parts import edges, runs, trackers
from benchmarks.fault_parts.children import warm_up
from benchmarks.fault_parts.tally import Attempt, TallyTable

ROOT = Path(__file__).parents[1]
#: Fuzzed inputs of one attempt.
PORTION = 500
RUNS = ("kills", "ends", "disk", "edges", "damage", "wandb")
"""What needs runs."""
ROWS = {
    "kills": "SIGKILL", "ends": "announced end", "disk": "disk fault", "damage": "damaged file", "wandb": "W&B fault",
    "edges": "number at the edge", "fuzz": "fuzzed input",
}  # fmt: skip
BESIDE = ("edges", "fuzz")
"""What a second process tries beside the rest: these rows measure no times."""


def fuzz(number: int, draw: random.Random) -> Attempt:
    """A portion of fuzzed inputs."""
    from tests.fuzz.campaign import campaign

    done = campaign(PORTION, number)
    found = {f"{each.name}: {kind}": text for each in done for kind, text in each.findings.items()}
    return Attempt("; ".join(found), "\n".join(found.values()), sum(each.tried for each in done))


def try_runs(chosen: argparse.Namespace, table: TallyTable, folder: Path) -> None:
    """Everything that needs runs."""
    from tests.cli.commands import write_recipe

    warm_up()
    scene = runs.Scene(folder, write_recipe(folder))
    code = scene.train(scene.whole).wait()
    if code:
        sys.exit(f"the undisturbed run ended with {code}:\n{scene.whole.with_suffix('.said').read_text()}")
    table.fill(ROWS["kills"], chosen.kills, chosen.seed, partial(runs.kill, scene))
    table.fill(ROWS["ends"], chosen.ends, chosen.seed, partial(runs.end, scene))
    table.fill(ROWS["disk"], chosen.disk, chosen.seed, partial(runs.starve, scene))
    table.fill(ROWS["edges"], chosen.edges, chosen.seed, partial(edges.try_number, scene))
    table.fill(ROWS["damage"], chosen.damage, chosen.seed, partial(runs.spoil, scene))
    if chosen.wandb:
        with trackers.server(folder) as url:
            table.fill(ROWS["wandb"], chosen.wandb, chosen.seed, partial(trackers.strike, scene, url))


@contextmanager
def beside(chosen: argparse.Namespace, table: TallyTable, results: Path) -> Iterator[None]:
    """Let a second process fill its rows while the body runs; they join the table at its end."""
    counts = {part: getattr(chosen, part) for part in BESIDE}
    rest = any(getattr(chosen, part) for part in RUNS if part not in BESIDE)
    if not (rest and any(counts.values())):
        yield
        return
    for part in BESIDE:
        setattr(chosen, part, 0)
    own = _beside(results)
    options = [f"--{part}={count}" for part, count in counts.items()]
    options += [f"--seed={chosen.seed}", f"--results={own}", "--keep"]
    command = [sys.executable, "-m", "benchmarks.faults", *options]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        yield
        process.wait()
    finally:
        process.kill()
        process.wait()
        table.rows |= TallyTable(own).rows
    lacking = [part for part, count in counts.items() if count and not _has(table, ROWS[part], count)]
    if lacking:
        sys.exit(f"The process for {', '.join(lacking)} ended with {process.returncode}.")


def _beside(results: Path) -> Path:
    return results.with_name(f"{results.stem}-beside.json")


def _has(table: TallyTable, what: str, count: int) -> bool:
    return what in table.rows and table.rows[what].tried >= count


def main() -> None:
    """Try what was asked for and print the table; exit 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for part in ROWS:
        parser.add_argument(f"--{part}", type=int, default=0, help="how many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=None, help="file that keeps the rows between sessions")
    parser.add_argument("--keep", action="store_true", help="leave that file behind after the last row too")
    chosen = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "WANDB_SILENT": "true",
        "TOKENIZERS_PARALLELISM": "false",
    }
    with tempfile.TemporaryDirectory(prefix="amsd-faults-") as name:
        folder = Path(name)
        places = {
            "AMSD_CACHE": "cache",
            "NETRC": "netrc",
            "WANDB_CONFIG_DIR": "config",
            "WANDB_CACHE_DIR": "wandb-cache",
        }
        os.environ |= {key: str(folder / place) for key, place in places.items()}
        results = chosen.results or folder / "results.json"
        table = TallyTable(results)
        try:
            with beside(chosen, table, results):
                if any(getattr(chosen, part) for part in RUNS):
                    try_runs(chosen, table, folder)
                table.fill(ROWS["fuzz"], chosen.fuzz, chosen.seed, fuzz)
        finally:
            for row in table.rows.values():
                for note in row.notes:
                    print(f"{row.what} {note}".encode("utf-8", "backslashreplace").decode())
            print(table, flush=True)
        for file in () if chosen.keep else (results, _beside(results)):  # the next session begins anew
            file.unlink(missing_ok=True)
    sys.exit(any(row.lost or row.raw for row in table.rows.values()))


if __name__ == "__main__":
    main()
