"""Disturbs runs in every way that is not their last step, resumes them, and prints what was lost: `nox -s faults`.

    python -m benchmarks.faults --kills 60 --ends 20 --disk 10 --damage 40 --wandb 14 --edges 60 --fuzz 10000

Runs of a tiny Stable Diffusion are killed at chosen and at random moments, ended by the signals that schedulers send,
given a file system that refuses files beyond a size, damaged file by file, and tracked with a W&B that dies; each is
resumed, and its log and weights are compared with those of a run that was never disturbed. Fuzzed input is read by
everything that reads input. What is done is kept in `--results`: the same command goes on after a cut.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.fault_parts import edges, runs, trackers
from benchmarks.fault_parts.children import warm_up
from benchmarks.fault_parts.tally import Attempt, Table

ROOT = Path(__file__).parents[1]
#: Fuzzed inputs of one attempt.
PORTION = 500


def fuzz(number: int, draw: random.Random) -> Attempt:
    """A portion of fuzzed inputs."""
    from tests.fuzz.campaign import campaign

    done = campaign(PORTION, number)
    found = {f"{each.name}: {kind}": text for each in done for kind, text in each.findings.items()}
    return Attempt("; ".join(found), "\n".join(found.values()), sum(each.tried for each in done))


def try_runs(chosen: argparse.Namespace, table: Table, folder: Path) -> None:
    """Everything that needs runs."""
    from tests.cli.commands import write_recipe

    warm_up()
    scene = runs.Scene(folder, write_recipe(folder))
    code = scene.train(scene.whole).wait()
    if code:
        sys.exit(f"the undisturbed run ended with {code}:\n{scene.whole.with_suffix('.said').read_text()}")
    table.fill("SIGKILL", chosen.kills, chosen.seed, partial(runs.kill, scene))
    table.fill("announced end", chosen.ends, chosen.seed, partial(runs.end, scene))
    table.fill("disk fault", chosen.disk, chosen.seed, partial(runs.starve, scene))
    table.fill("number at the edge", chosen.edges, chosen.seed, partial(edges.try_number, scene))
    table.fill("damaged file", chosen.damage, chosen.seed, partial(runs.spoil, scene))
    if chosen.wandb:
        with trackers.server(folder) as url:
            table.fill("W&B fault", chosen.wandb, chosen.seed, partial(trackers.strike, scene, url))


def main() -> None:
    """Try what was asked for and print the table; exit 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for part in ("kills", "ends", "disk", "damage", "wandb", "edges", "fuzz"):
        parser.add_argument(f"--{part}", type=int, default=0, help="how many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=None, help="file that keeps the rows between sessions")
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
        table = Table(chosen.results or folder / "results.json")
        try:
            if chosen.kills or chosen.ends or chosen.disk or chosen.damage or chosen.wandb or chosen.edges:
                try_runs(chosen, table, folder)
            table.fill("fuzzed input", chosen.fuzz, chosen.seed, fuzz)
        finally:
            for row in table.rows.values():
                for note in row.notes:
                    print(f"{row.what} {note}".encode("utf-8", "backslashreplace").decode())
            print(table, flush=True)
    sys.exit(any(row.lost or row.raw for row in table.rows.values()))


if __name__ == "__main__":
    main()
