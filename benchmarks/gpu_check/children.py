"""Parts of the check in a process of their own: what may not end, or needs another environment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from gpu_check.record import Check

GPU = Path(__file__).parents[1] / "gpu.py"


def run_child(
    check: Check, part: str, arguments: Sequence[str], variables: Mapping[str, str], limit: float, **named: str
) -> None:
    """Run this program with further arguments, at most `limit` seconds; count its crashes, and say how it ended."""
    options = ["--device", check.options.device, *(["--tiny"] if check.options.tiny else [])]
    child = subprocess.Popen(
        [sys.executable, str(GPU), *arguments, *options], env={**os.environ, **variables, "OUT": str(check.out)},
        start_new_session=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    rc: int | str
    try:
        output, _ = child.communicate(timeout=max(1.0, limit))
        rc = child.returncode
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        output, _ = child.communicate()
        rc = f"stopped after {limit:.0f} s"
    print(output, end="", flush=True)
    rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    check.rows.extend(row for row in rows if "CRASH" in row)  # they are in the file already; here they are counted
    died = {"CRASH": f"the child ended with {rc}"} if isinstance(rc, int) and rc != 0 else {}
    check.say(part, **named, rc=rc, **died)
