"""One command becomes several processes, through PyTorch's own launcher (what `accelerate launch` uses too)."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from amsd.ends import INTERRUPTED, REQUEUE, SIGNALS, AnnouncedEnd
from amsd.errors import RunError, UsageError

if TYPE_CHECKING:
    from psutil import Process

_CODES = "AMSD_EXIT_CODES"
_SWEEP = "AMSD_SWEEP_RUN"
"""Set for the trials of a sweep, whose workers may be tasks of one job."""
#: Seconds for which a process may be stopped while the others wait for it.
FROZEN_AFTER = 30.0


def launched() -> bool:
    """Whether this process is already one of several (torchrun, `accelerate launch`, Slurm with torchrun)."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def relaunched() -> bool:
    """Whether this process was started by `relaunch`."""
    return _CODES in os.environ


def in_sweep() -> bool:
    """Whether this process runs a trial of a sweep."""
    return _SWEEP in os.environ


def rank() -> int:
    """Index of this process among those of the command."""
    return int(os.environ.get("RANK", "0"))


def require_one_task() -> None:
    """Refuse a training that `srun` alone started several times: its tasks do not know of each other.

    Raises:
        UsageError: says how many there are, and how to start processes that do.
    """
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "")
    if launched() or in_sweep() or not tasks.isdigit() or int(tasks) < 2:
        return
    raise UsageError(
        f"srun has started {tasks} tasks of this command (SLURM_STEP_NUM_TASKS = {tasks}), and each would train alone. "
        "Start one task per node with torchrun in it: srun --ntasks-per-node=1 torchrun --nnodes=$SLURM_NNODES "
        "--nproc-per-node=GPUS --rdzv-backend=c10d --rdzv-endpoint=HOST:PORT -m amsd train ...; on one node: "
        "srun --ntasks=1 amsd train ... --processes GPUS."
    )


def report_code(code: int) -> None:
    """Tell the command that launched this process how it ends: PyTorch's launcher only tells success from failure."""
    folder = os.environ.get(_CODES)
    if folder and Path(folder).is_dir():
        (Path(folder) / str(rank())).write_text(str(code), encoding="utf-8")


def relaunch(arguments: Sequence[str], processes: int) -> int:
    """Run `amsd ARGUMENTS` in `processes` processes on this machine; returns the exit code of the command.

    If one process fails the others are ended. They end as well if this process is killed, and if one of them is
    stopped for long. A signal that announces an end is passed on to all of them.

    Raises:
        AnnouncedEnd: a signal ended them, or one of them.
        RunError: a process died without a word, or was stopped; it is named.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from amsd import leash

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # the processes speak for themselves
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    worker = [sys.executable, "-I", leash.__file__, str(os.getpid()), sys.executable, "-m", "amsd", *arguments]
    with tempfile.TemporaryDirectory(prefix="amsd-") as codes:
        os.environ[_CODES] = codes
        options = ["--standalone", f"--nproc-per-node={processes}", "--no-python"]
        frozen = _Frozen()
        failure, received = _launch([*options, *worker], frozen.look)
        del os.environ[_CODES]
        if failure is None:
            return 0
        if not isinstance(failure, ChildFailedError):
            raise failure
        found = {int(file.name): int(file.read_text(encoding="utf-8")) for file in Path(codes).iterdir()}
    if frozen.rank is not None:
        raise RunError(
            f"Process {frozen.rank} of {processes} was stopped (SIGSTOP, or a debugger) for {FROZEN_AFTER:g} s while "
            "the others waited for it. amsd ended them all. Continue with --resume."
        )
    ended = {index: process.exitcode for index, process in failure.failures.items() if index not in found}
    # Without a word: the others then fail as well, or are told to end, because they cannot go on without it.
    dead = {index: code for index, code in ended.items() if code < 0 and code != -signal.SIGTERM}
    if dead and not received:
        index, code = next(iter(dead.items()))
        how = signal.Signals(-code).name
        hint = " (out of memory?)" if how == "SIGKILL" else ""
        raise RunError(
            f"Process {index} of {processes} died: {how}{hint}. amsd ended the others. Continue with --resume."
        )
    failed = [code for code in found.values() if code not in (0, INTERRUPTED, REQUEUE)]
    if failed or not (received or found):
        return max(failed, default=1)
    # Else one came to a process alone, which has told no more than its exit code.
    raise AnnouncedEnd(received or (signal.SIGINT if INTERRUPTED in found.values() else 0))


class _Frozen:
    """Looks for a rank that somebody stopped, and kills it once the others have waited too long for it.

    Time counts only while this process runs itself: Ctrl-Z stops all of them, and harms nothing.
    """

    def __init__(self) -> None:
        self.rank: int | None = None
        """The rank that was found stopped for so long."""
        self._looks: dict[int, int] = {}
        self._next = 0.0

    def look(self) -> None:
        """Look once a second."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + 1.0
        import psutil

        stopped = {}
        for child in _ranks():
            with contextlib.suppress(psutil.Error):
                if child.status() == psutil.STATUS_STOPPED:
                    stopped[child.pid] = child
        self._looks = {pid: self._looks.get(pid, 0) + 1 for pid in stopped}
        for pid, looks in self._looks.items():
            if looks >= FROZEN_AFTER and self.rank is None:
                with contextlib.suppress(psutil.Error):
                    self.rank = int(stopped[pid].environ()["RANK"])
                    stopped[pid].kill()


def _launch(arguments: Sequence[str], look: Callable[[], None]) -> tuple[Exception | None, int]:
    """Run torch's launcher to its end; what it raised, and the first signal that was passed on to its processes.

    `look` is called several times a second.

    It runs in a thread, so that its own handlers, which know two signals and no mercy, are not installed.
    """
    from torch.distributed import run as torchrun

    failures: list[Exception] = []
    received: list[int] = []

    def work() -> None:
        try:
            torchrun.run(torchrun.parse_args(list(arguments)))
        except Exception as error:  # noqa: BLE001  # it goes to the caller
            failures.append(error)

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        _tell_children(number)

    before = {
        number: signal.signal(number, pass_on) for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        thread = threading.Thread(target=work, name="amsd-launcher")
        thread.start()
        while thread.is_alive():
            thread.join(0.2)
            look()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return (failures[0] if failures else None), (received[0] if received else 0)


def _tell_children(number: int) -> None:
    """Send a signal to the ranks."""
    import psutil

    for child in _ranks():
        with contextlib.suppress(psutil.Error):
            child.send_signal(number)


def _ranks() -> Iterator[Process]:
    """The processes below this one that carry a rank."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "RANK" in child.environ() and "-m" in child.cmdline() and "amsd" in child.cmdline():
                yield child
