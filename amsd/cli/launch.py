"""One command becomes several processes, through PyTorch's own launcher (what `accelerate launch` uses too)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence


def launched() -> bool:
    """Whether this process is already one of several (torchrun, `accelerate launch`, Slurm with torchrun)."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def relaunch(arguments: Sequence[str], processes: int) -> int:
    """Run `amsd ARGUMENTS` in `processes` processes on this machine; returns the exit code of the command."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = os.environ | {"AMSD_LAUNCHER": "1"}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    child = subprocess.Popen([*command, "-m", "amsd", *arguments], env=environment, start_new_session=True)
    previous = {number: signal.signal(number, _forward(child)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = child.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return _command_code(code)


def _forward(child: subprocess.Popen[bytes]) -> signal.Handlers:
    def handler(number: int, frame: object) -> None:
        os.killpg(child.pid, number)

    return handler  # type: ignore[return-value]  # signal.signal takes any callable


def _command_code(code: int) -> int:
    # The launcher ends with 1 whatever its workers ended with; a signal counts as interruption.
    return 128 - code if code < 0 else code
