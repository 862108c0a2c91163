"""One writer per folder: across threads of time, processes, and machines that are only told by what they write."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from amsd import lock
from amsd.errors import UsageError
from amsd.files import DiskError
from amsd.lock import locked
from tests.waiting import until

HOLD = """
import sys, time
from pathlib import Path
from amsd.lock import locked
from tests.waiting import until
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    process = holder(tmp_path)
    try:
        with pytest.raises(UsageError, match=rf"in use by process {process.pid} on "), locked(tmp_path):
            pass
    finally:
        process.kill()
        process.wait()
    assert (tmp_path / "lock").is_file()  # it could not delete it
    with locked(tmp_path):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    assert not (tmp_path / "lock").exists()


def test_waiting_for_an_end(tmp_path: Path) -> None:
    process = holder(tmp_path)
    threading.Timer(0.3, process.kill).start()
    begin = time.monotonic()
    with locked(tmp_path, wait=20):
        assert time.monotonic() - begin < 10
    process.wait()


@pytest.mark.parametrize("kernel", [True, False])
def test_another_machine_is_judged_by_its_beat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: bool) -> None:
    """Also where the file system has no locks at all."""
    monkeypatch.setattr(lock, "WATCH", 0.5)
    if not kernel:
        _without_locks(monkeypatch)
    content: dict[str, Any] = {"host": "elsewhere", "pid": 7, "started": 0.0, "beat": 3}
    file = tmp_path / "lock"
    file.write_text(json.dumps(content))
    with locked(tmp_path):  # its beat stood still
        pass
    file.write_text(json.dumps(content))
    threading.Timer(0.2, lambda: file.write_text(json.dumps(content | {"beat": 4}))).start()
    with pytest.raises(UsageError, match="process 7 on elsewhere"), locked(tmp_path):
        pass


def test_without_kernel_locks_the_process_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_locks(monkeypatch)
    with locked(tmp_path):
        with pytest.raises(UsageError, match=f"process {os.getpid()} on "), locked(tmp_path):
            pass
        data = json.loads((tmp_path / "lock").read_text())
    former = {key: value for key, value in data.items() if key != "ticks"}  # as earlier versions wrote it
    for other in (data | {"ticks": 1}, former | {"started": 1.0}):  # the number was given to another process since
        (tmp_path / "lock").write_text(json.dumps(other))
        with locked(tmp_path):
            pass
    (tmp_path / "lock").write_text(json.dumps(former))
    with pytest.raises(UsageError, match=f"process {os.getpid()} on "), locked(tmp_path):
        pass


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the ticks of a process are Linux's")
def test_a_clock_that_is_set_back_frees_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's start, and with it the start of each process, follows the clock."""
    _without_locks(monkeypatch)
    with locked(tmp_path):
        data = json.loads((tmp_path / "lock").read_text())
    (tmp_path / "lock").write_text(json.dumps(data | {"started": data["started"] + 3600}))
    with pytest.raises(UsageError, match=f"process {os.getpid()} on "), locked(tmp_path):
        pass


def _without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"host": 3}', "\x00" * 40])
def test_a_torn_file_blocks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    monkeypatch.setattr(lock, "WATCH", 0.1)
    (tmp_path / "lock").write_text(content)
    with locked(tmp_path):
        pass


def test_a_holder_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT", 0.02)
    with locked(tmp_path):
        before = json.loads((tmp_path / "lock").read_text())["beat"]
        until(lambda: json.loads((tmp_path / "lock").read_text())["beat"] > before, seconds=30)


def test_many_at_once_one_at_a_time(tmp_path: Path) -> None:
    """Letting go deletes the file, which must not let two in."""
    script = """
import sys, time, os
from pathlib import Path
from amsd.lock import locked
from tests.waiting import until
folder = Path(sys.argv[1])
for _ in range(40):
    with locked(folder, wait=60):
        (folder / "inside").touch(exist_ok=False)
        (folder / "inside").unlink()
"""
    processes = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path)]) for _ in range(3)]
    assert [process.wait(120) for process in processes] == [0, 0, 0]


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(lock.os, "pwrite", full)
    with pytest.raises(DiskError, match=f"{tmp_path / lock.NAME} cannot be written: No space left"), locked(tmp_path):
        pass
