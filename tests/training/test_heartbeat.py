"""Processes that hear of each other: who falls silent is named, and the others do not wait for it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from amsd.ends import AnnouncedEnd, Ends
from amsd.errors import RunError
from amsd.training import heartbeat, processes
from amsd.training.heartbeat import BEAT, Heartbeat

ROOT = Path(__file__).parents[2]


class Memory:
    """A store of the processes in memory; what is not there is refused at once."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    def set(self, key: str, value: str) -> None:
        self.values[key] = value.encode()

    def check(self, keys: list[str]) -> bool:
        return set(keys) <= self.values.keys()

    def get(self, key: str) -> bytes:
        return self.values[key]


def test_a_silent_process_is_named_after_the_patience_and_not_before() -> None:
    store, said = Memory(), []
    first, second = (Heartbeat(store, own, 3, said.append, patience=10 * BEAT) for own in (0, 1))
    store.set("amsd/beat/2", "done")  # it has ended in good order
    store.set("amsd/beat/1/where", "4711 on node-2")
    for _ in range(5):
        second.turn()
        first.turn()
    for _ in range(9):
        first.turn()
    assert said == []
    assert first.quietest() == "Process 1 of 3 (4711 on node-2)"
    first.turn()
    [text] = said
    assert text.startswith("Process 1 of 3 (4711 on node-2) has been silent for 20 s")
    assert "Continue with" in text


def test_a_process_that_ended_in_good_order_is_not_missed() -> None:
    store, said = Memory(), []
    first, second = (Heartbeat(store, own, 2, said.append, patience=3 * BEAT) for own in (0, 1))
    second.turn()
    second.stop()
    for _ in range(20):
        first.turn()
    assert said == []
    assert first.quietest() is None


def test_no_thread_is_inside_the_store_once_it_was_stopped() -> None:
    """Python that ends while a thread is inside PyTorch aborts: "terminate called without an active exception"."""
    inside = threading.Event()

    class Slow(Memory):
        def check(self, keys: list[str]) -> bool:
            inside.set()
            time.sleep(0.3)
            return super().check(keys)

    store = Slow()
    beating = Heartbeat(store, 0, 3, [].append)
    beating.start()
    assert inside.wait(5)
    beating.stop()
    assert "amsd-heartbeat" not in {thread.name for thread in threading.enumerate()}
    assert store.values["amsd/beat/0"] == b"done"  # no beat of the threads comes after it


def test_a_store_that_does_not_answer_at_all_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT", 0.01)

    class Stuck(Memory):
        def check(self, keys: list[str]) -> bool:
            threading.Event().wait(5)
            return False

    said: list[str] = []
    Heartbeat(Stuck(), 1, 2, said.append, patience=0.1).start()
    end = time.monotonic() + 4
    while not said and time.monotonic() < end:
        time.sleep(0.01)
    assert said[0].startswith("Process 0 of 2, or the launcher")


def test_a_failed_exchange_says_who_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "missing", lambda: "Process 1 of 2 (4711 on node-2)")
    with pytest.raises(RunError, match=r"Process 1 of 2 .* ended while .*Connection closed.*Continue with .*resume"):  # noqa: SIM117
        with processes.exchanging():
            raise RuntimeError("Connection closed by peer")
    with pytest.raises(RuntimeError, match="out of memory"), processes.exchanging():
        raise RuntimeError("CUDA error: out of memory")


def test_several_processes_end_at_the_same_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two processes this one has two pieces, the other three; its signal comes while it makes the third."""
    others = iter([(0, False), (0, False), (0, False), (15, True)])
    monkeypatch.setattr(processes, "world_size", lambda: 2)
    monkeypatch.setattr(processes, "gather", lambda values: [*values, next(others)])
    done: list[int] = []

    def work() -> None:
        with processes.obeying(Ends(alone=False)), processes.interruptible() as look:
            for piece in range(2):
                look()
                done.append(piece)

    with pytest.raises(AnnouncedEnd) as end:
        work()
    assert done == [0, 1]
    assert end.value.signal_name == "SIGTERM"


def test_work_of_unequal_shares_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    others = iter([(0, False), (0, True), (0, True), (0, True)])
    monkeypatch.setattr(processes, "world_size", lambda: 2)
    monkeypatch.setattr(processes, "gather", lambda values: [*values, next(others)])
    with processes.obeying(Ends(alone=False)), processes.interruptible() as look:
        for _ in range(3):
            look()
    assert next(others, None) is None  # three pieces, and one meeting after them


def test_nothing_is_exchanged_where_nothing_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "gather", None)
    with processes.interruptible() as look:
        look()
    with processes.obeying(Ends()), processes.interruptible() as look:
        look()


PROCESS = """
import sys, time
import torch.distributed as dist
from amsd.cli import main
from amsd.cli import app as cli
from amsd.training import heartbeat, processes

def work():
    dist.init_process_group("gloo")
    heartbeat.begin()
    for number in range(10_000):
        processes.gather([number])
        print(number, flush=True)
        time.sleep(0.05)

cli.app = work
main()
"""


def processes_that_exchange(count: int) -> list[subprocess.Popen[str]]:
    """As any launcher starts them: torchrun, `accelerate launch` and Slurm set these variables."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    given = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count), "AMSD_PATIENCE": "8"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS],
            env=os.environ | given | {"RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(count)
    ]  # fmt: skip
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "0\n"
    return started


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "victim", "said"),
    [
        (signal.SIGSTOP, 1, "Process 1 of 2 ({pid} on {host}) has been silent for 8 s"),
        (signal.SIGSTOP, 0, "has been silent for 8 s"),
        (signal.SIGKILL, 1, "Process 1 of 2 ({pid} on {host}) ended while this process waited for it"),
    ],
)
def test_the_others_end_in_a_bounded_time_and_name_the_one_that_is_gone(
    number: signal.Signals, victim: int, said: str
) -> None:
    started = processes_that_exchange(2)
    gone, other = started[victim], started[1 - victim]
    begin = time.monotonic()
    gone.send_signal(number)
    try:
        error = other.communicate(timeout=90)[1]
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert other.returncode == 1
    assert said.format(pid=gone.pid, host=socket.gethostname()) in error
    assert "Continue with" in error
    assert "Traceback" not in error
    assert time.monotonic() - begin < 60
