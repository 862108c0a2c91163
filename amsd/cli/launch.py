"""One command becomes several processes, through PyTorch's own launcher (what `accelerate launch` uses too)."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

INTERRUPTED = 130
_CODES = "AMSD_EXIT_CODES"


def launched() -> bool:
    """Whether this process is already one of several (torchrun, `accelerate launch`, Slurm with torchrun)."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def relaunched() -> bool:
    """Whether this process was started by `relaunch`."""
    return _CODES in os.environ


def rank() -> int:
    """Index of this process among those of the command."""
    return int(os.environ.get("RANK", "0"))


def report_code(code: int) -> None:
    """Tell the command that launched this process how it ends: PyTorch's launcher only tells success from failure."""
    folder = os.environ.get(_CODES)
    if folder and Path(folder).is_dir():
        (Path(folder) / str(rank())).write_text(str(code), encoding="utf-8")


def relaunch(arguments: Sequence[str], processes: int) -> int:
    """Run `amsd ARGUMENTS` in `processes` processes on this machine; returns the exit code of the command.

    If one process fails the others are ended. They end as well if this process is killed.
    """
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from amsd import leash

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # the processes speak for themselves
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    worker = [sys.executable, "-I", leash.__file__, str(os.getpid()), sys.executable, "-m", "amsd", *arguments]
    with tempfile.TemporaryDirectory(prefix="amsd-") as codes:
        os.environ[_CODES] = codes
        options = ["--standalone", f"--nproc-per-node={processes}", "--no-python"]
        try:
            torchrun.run(torchrun.parse_args([*options, *worker]))
        except KeyboardInterrupt:
            return INTERRUPTED
        except SignalException as ended:
            return 128 + int(ended.sigval)  # 130 for Ctrl-C
        except ChildFailedError:
            found = [int(file.read_text(encoding="utf-8")) for file in Path(codes).iterdir()]
            return max(found, default=1)
        finally:
            del os.environ[_CODES]
    return 0
