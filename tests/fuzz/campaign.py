"""Many examples of every property, with every distinct finding collected: `python -m tests.fuzz.campaign 10000`."""

from __future__ import annotations

import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.properties import Property, properties

#: Seconds of processor time that one example may take at most.
PATIENCE = 5.0


@dataclass
class Campaign:
    """What was tried of one property."""

    name: str
    tried: int = 0
    accepted: int = 0
    findings: dict[str, str] = field(default_factory=dict)
    """Kind of the error and where it arose -> the first example and what was raised."""
    slowest: float = 0.0


def run(tested: Property, count: int, number: int) -> Campaign:
    """Try `count` examples; nothing that they raise ends the campaign."""
    done = Campaign(tested.name)

    @seed(number)
    @settings(
        max_examples=count, deadline=None, database=None, derandomize=False, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(tested.examples)
    def attempt(example: Any) -> None:
        done.tried += 1
        began = time.process_time()
        with tempfile.TemporaryDirectory(prefix="amsd-fuzz-") as scratch:
            try:
                done.accepted += tested.check(example, Path(scratch))
            except Exception as error:  # noqa: BLE001  # that is what is looked for
                last = traceback.extract_tb(error.__traceback__)[-1]
                kind = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
                trace = "".join(traceback.format_exception(error))[-1500:]
                done.findings.setdefault(kind, f"{example!r:.600}\n{trace}")
        took = time.process_time() - began
        done.slowest = max(done.slowest, took)
        if took > PATIENCE and done.tried > 1:  # the first one imports what it needs
            done.findings.setdefault(f"took over {PATIENCE:g} s", f"{example!r:.600}")

    attempt()
    return done


def campaign(count: int, number: int = 0, only: Sequence[str] = ()) -> list[Campaign]:
    """`count` examples, shared among the properties."""
    chosen = [each for each in properties() if not only or each.name in only]
    return [run(each, -(-count // len(chosen)), number) for each in chosen]


def main() -> None:
    """Print a row per property, and every finding."""
    failed = False
    for done in campaign(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0, sys.argv[3:]):
        counts = f"{done.tried:>8}{done.accepted:>8} accepted{len(done.findings):>5} findings"
        print(f"{done.name:<16}{counts}, slowest {done.slowest:.2f} s", flush=True)
        for kind, text in done.findings.items():
            failed = True
            print(f"--- {kind}\n{text}\n".encode("utf-8", "backslashreplace").decode(), flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
