"""Real processes: workers killed outright, Ctrl-C, pruning; on SQLite and on a PostgreSQL that restarts meanwhile.

Trials are the fake trainer, which records every step it computes: a step in `steps.txt` twice was computed twice.
"""

from __future__ import annotations

import os
import pwd
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from amsd.sweep.launchers.processes import MARK, end_processes
from amsd.sweep.results import SweepResults, load_sweep
from amsd.sweep.storage import STORAGE_VARIABLE, default_url
from amsd.sweep.study import create
from tests.sweep.conftest import FAKE_TRAINER, MakePlan
from tests.waiting import gone, until

pytestmark = pytest.mark.slow

#: A worker that is only slow, on a busy machine, is not taken for dead.
PATIENT = {"heartbeat_seconds": 0.5, "lost_after_seconds": 15.0}


def start_worker(url: str, held: Path | None = None) -> subprocess.Popen[bytes]:
    """A worker that joins by URL only, as from another machine; its trials stop half-way while `held` exists."""
    own = shlex.join([sys.executable, str(FAKE_TRAINER)])
    command = [sys.executable, "-m", "amsd", "sweep", "worker", "--study", "small", "--command", own]
    environment = {**os.environ, **holding(held), STORAGE_VARIABLE: url}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, start_new_session=True)


def holding(held: Path | None) -> dict[str, str]:
    if held is None:
        return {}
    held.touch()
    return {"FAKE_HELD_WHILE": str(held)}


def steps_of(directory: Path) -> dict[str, list[int]]:
    return {
        file.parts[-4]: [int(line) for line in file.read_text().split()]
        for file in directory.glob("trials/*/seed-0/run/steps.txt")
    }


def check_whole(results: SweepResults, trials: int, steps: int) -> None:
    """Every trial complete; every step computed once, but for what came after the last checkpoint of a killed one."""
    assert [trial.state for trial in results.trials] == ["complete"] * trials
    computed = steps_of(results.directory)
    assert len(computed) == trials
    for trial in results.trials:
        (own,) = [found for name, found in computed.items() if name.startswith(f"{trial.number:04d}-")]
        assert sorted(set(own)) == list(range(1, steps + 1))
        assert len(own) - steps <= 2 * (trial.attempts - 1), (trial.number, own)


def half_way(directory: Path, steps: int) -> list[int]:
    """Numbers of the trials that are held in the middle."""
    return sorted(int(name[:4]) for name, own in steps_of(directory).items() if own and max(own) == steps // 2)


def kill_one_mid_trial(directory: Path, steps: int) -> int:
    """SIGKILL the owner of a trial that is held in the middle; returns the trial's number.

    The kernel ends the training of a worker that dies: it must not go on alone.
    """
    until(lambda: bool(half_way(directory, steps)))
    number = half_way(directory, steps)[0]
    trial = load_sweep(directory).trials[number]
    assert trial.worker is not None
    training = int((trial.runs[0].directory / "starts.txt").read_text().split()[0])
    os.kill(int(trial.worker.rpartition(":")[2]), signal.SIGKILL)
    until(lambda: gone(training))
    return number


def test_two_workers_one_killed_on_sqlite(make_plan: MakePlan, tmp_path: Path) -> None:
    steps = 12
    plan = make_plan(
        override={"training.steps": steps, "training.checkpoint_every": 2}, budget={"trials": 5}, execution=PATIENT
    )
    create(plan, tmp_path)
    held = tmp_path / "held"
    workers = [start_worker(default_url(tmp_path), held) for _ in range(2)]
    number = kill_one_mid_trial(tmp_path, steps)
    held.unlink()
    codes = sorted(worker.wait(600) for worker in workers)
    assert codes == [-signal.SIGKILL, 0]
    results = load_sweep(tmp_path)
    check_whole(results, trials=5, steps=steps)
    killed = results.trials[number]
    assert killed.attempts == 2
    starts = (killed.runs[0].directory / "starts.txt").read_text().splitlines()
    assert len(starts) == 2
    assert int(starts[1].rpartition(" ")[2]) == steps // 2  # from its checkpoint, not from the start
    assert all(trial.attempts == 1 for trial in results.trials if trial.number != number)


def test_ctrl_c_hands_the_trial_back_and_it_resumes(make_plan: MakePlan, tmp_path: Path) -> None:
    steps = 12
    plan = make_plan(
        override={"training.steps": steps, "training.checkpoint_every": 2}, budget={"trials": 2}, execution=PATIENT
    )
    create(plan, tmp_path)
    worker = start_worker(default_url(tmp_path), tmp_path / "held")
    until(lambda: bool(half_way(tmp_path, steps)))
    worker.send_signal(signal.SIGINT)
    assert worker.wait(180) == 130
    assert [trial.state for trial in load_sweep(tmp_path).trials] == ["queued"]
    assert start_worker(default_url(tmp_path)).wait(300) == 0
    results = load_sweep(tmp_path)
    check_whole(results, trials=2, steps=steps)
    assert [trial.attempts for trial in results.trials] == [2, 1]


def sweep_file(folder: Path, more: str = "", **override: object) -> Path:
    """A sweep file whose trials are the fake trainer."""
    trainer = Path(__file__).with_name("fake_trainer.py")
    changed = ", ".join(f'"{key.replace("__", ".")}" = {value!r}' for key, value in override.items())
    file = folder / "small.toml"
    file.write_text(
        'recipe = "shapes"\nsearch = { "schedule.eta" = { low = 0.5, high = 1.5 } }\n'
        f'objective = [{{ metric = "shapes:right" }}]\noverride = {{ {changed} }}\n{more}\n'
        f'[execution]\ncommand = ["{sys.executable}", "{trainer}"]\npoll_seconds = 0.05\n'
    )
    return file


def test_ctrl_c_of_the_sweep_command_hands_back_the_trials_of_all_workers(tmp_path: Path) -> None:
    steps = 12
    sweep = sweep_file(tmp_path, "budget = { trials = 4 }", training__steps=steps, training__checkpoint_every=2)
    command = [sys.executable, "-m", "amsd", "sweep", "run", str(sweep), "--output", str(tmp_path / "out")]

    def start(held: Path | None = None) -> subprocess.Popen[str]:
        environment = {**os.environ, **holding(held)}
        return subprocess.Popen(
            [*command, "--workers", "2"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    first = start(tmp_path / "held")
    until(lambda: len(half_way(tmp_path / "out", steps)) == 2)
    first.send_signal(signal.SIGINT)
    output, errors = first.communicate(timeout=300)
    assert first.returncode == 130, output + errors
    assert "unfinished trials are queued again" in errors
    assert [trial.state for trial in load_sweep(tmp_path / "out").trials] == ["queued"] * 2
    second = start()
    output, errors = second.communicate(timeout=600)
    assert second.returncode == 0, output + errors
    results = load_sweep(tmp_path / "out")
    check_whole(results, trials=4, steps=steps)
    assert [trial.attempts for trial in results.trials] == [2, 2, 1, 1]
    output, errors = start().communicate(timeout=300)
    assert "Nothing is left to do" in output, output + errors


def test_the_sweep_command_runs_workers_and_stops_when_all_fail_alike(tmp_path: Path) -> None:
    sweep = sweep_file(tmp_path, "budget = { trials = 9 }", tracking__project="fail")
    command = [sys.executable, "-m", "amsd", "sweep", "run", str(sweep), "--output", str(tmp_path / "out")]
    done = subprocess.run([*command, "--workers", "2"], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 1
    assert re.search(r"first [34] trials all failed alike", done.stderr)
    assert "no such weights" in done.stderr
    assert "Traceback" not in done.stderr
    results = load_sweep(tmp_path / "out")
    assert sum(trial.state == "failed" for trial in results.trials) in (3, 4)  # the other worker may be in the middle


def test_every_process_of_a_run_is_ended_even_in_other_sessions(tmp_path: Path) -> None:
    """Ranks started by torch's launcher sit in sessions of their own, and one of these ignores SIGTERM."""
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    )
    environment = {**os.environ, MARK: str(tmp_path)}
    rank = subprocess.Popen(
        [sys.executable, "-c", stubborn], env=environment, stdout=subprocess.PIPE, start_new_session=True
    )
    assert rank.stdout is not None
    rank.stdout.readline()
    begun = time.monotonic()
    end_processes(str(tmp_path), grace=0.5)
    assert rank.wait(60) == -signal.SIGKILL
    assert time.monotonic() - begun >= 0.5


# --- PostgreSQL -----------------------------------------------------------------------------------------------------


class Cluster:
    """A PostgreSQL of its own, in a temporary folder, run as the user `postgres` when the test runs as root."""

    def __init__(self, folder: Path, binaries: Path, user: str | None) -> None:
        self.folder, self.binaries, self.user = folder, binaries, user
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    @property
    def url(self) -> str:
        return f"postgresql://sweeper@127.0.0.1:{self.port}/postgres"

    def tool(self, name: str, *arguments: str) -> None:
        environment = {**os.environ, "LC_ALL": "C", "PATH": os.defpath}
        subprocess.run(
            [str(self.binaries / name), *arguments], user=self.user, env=environment, cwd="/", check=True,
            stdout=subprocess.DEVNULL, timeout=120,
        )  # fmt: skip

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder}"
        log = str(self.folder / "log.txt")
        self.tool("pg_ctl", "-D", str(self.folder / "data"), "-l", log, "-w", "-o", options, "start")

    def stop(self) -> None:
        self.tool("pg_ctl", "-D", str(self.folder / "data"), "-w", "-m", "immediate", "stop")


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with _cluster() as started:
        yield started


@contextmanager
def _cluster() -> Iterator[Cluster]:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not found:
        pytest.skip("no PostgreSQL server on this machine (Debian: apt-get install postgresql)")
    user = "postgres" if os.getuid() == 0 else None
    folder = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
    if user is not None:
        os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
    server = Cluster(folder, found[-1], user)
    server.tool("initdb", "-D", str(folder / "data"), "-U", "sweeper", "-A", "trust", "--no-sync", "--no-locale")
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.postgresql
def test_four_workers_one_killed_and_the_server_restarted(
    make_plan: MakePlan, tmp_path: Path, cluster: Cluster
) -> None:
    steps = 12
    plan = make_plan(
        override={"training.steps": steps, "training.checkpoint_every": 2}, budget={"trials": 10},
        execution=PATIENT,
    )  # fmt: skip
    create(plan, tmp_path, cluster.url)
    held = tmp_path / "held"
    workers = [start_worker(cluster.url, held) for _ in range(4)]
    number = kill_one_mid_trial(tmp_path, steps)
    cluster.stop()
    held.unlink()  # the other trials end while nobody can be told
    time.sleep(3)
    cluster.start()
    codes = sorted(worker.wait(900) for worker in workers)
    assert codes == [-signal.SIGKILL, 0, 0, 0]
    results = load_sweep(cluster.url)
    check_whole(results, trials=10, steps=steps)
    assert results.trials[number].attempts >= 2
