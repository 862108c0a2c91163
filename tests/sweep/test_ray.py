"""Ray: what fits, a cluster of three nodes of which one dies, a driver that dies, checkpoints that travel."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from amsd.errors import UsageError
from amsd.sweep import optuna_access as names
from amsd.sweep.jobs import Ended, Job, Monitor, RunLog, Verdict
from amsd.sweep.launchers import Launch
from amsd.sweep.launchers.processes import MARK, ProcessExecutor
from amsd.sweep.launchers.ray import RayLauncher, _driver, drive, fitting
from amsd.sweep.launchers.ray_executor import Hosts, Need, RayExecutor, TrialHost, pack, unpack
from amsd.sweep.results import load_sweep, results_of
from amsd.sweep.study import create, locate
from amsd.sweep.trial import make_point
from tests.sweep.conftest import FAKE_TRAINER, MakePlan
from tests.sweep.formula import Formula
from tests.sweep.real import QUICK, logged_steps
from tests.waiting import until

pytest.importorskip("ray")

#: A node may start slowly on a busy machine.
PATIENT = {"RAY_raylet_start_wait_time_s": "60"}


def test_what_fits_is_counted_node_by_node() -> None:
    nodes = [{"CPU": 8.0, "GPU": 4.0}, {"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0}]
    assert fitting(Need(1, 1), nodes) == 5
    assert fitting(Need(1, 2), nodes) == 2  # never one GPU here and one there
    assert fitting(Need(2, 0.5), nodes) == 4 + 2  # two to a GPU; the first node has CPUs for four
    assert fitting(Need(1, 0.4), nodes) == 8 + 2
    assert fitting(Need(3, 0), nodes) == 6
    assert fitting(Need(9, 0), nodes) == 0


def test_a_run_travels_with_the_checkpoints_that_count(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in (2, 4, 6):
        (run / f"checkpoints/step-{step:06d}/state").mkdir(parents=True)
        (run / f"checkpoints/step-{step:06d}/state/a.bin").write_bytes(bytes([step]) * 100)
        (run / f"checkpoints/step-{step:06d}/manifest.json").write_text("{}")
    (run / "checkpoints/latest").write_text("step-000006\n")
    (run / "checkpoints/best").write_text("step-000002\n")
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    (run / "wandb").mkdir()
    (run / "wandb/run.wandb").write_bytes(b"large")
    unpack(pack(run), tmp_path / "there")
    found = {str(path.relative_to(tmp_path / "there")) for path in (tmp_path / "there").rglob("*") if path.is_file()}
    both = {f"checkpoints/step-{step:06d}/{name}" for step in (2, 6) for name in ("state/a.bin", "manifest.json")}
    assert found == {"metrics.jsonl", "checkpoints/latest", "checkpoints/best"} | both
    assert (tmp_path / "there/checkpoints/step-000006/state/a.bin").read_bytes() == bytes([6]) * 100


def test_one_process_drives_a_sweep(tmp_path: Path) -> None:
    drives = f"process {os.getpid()} drives this sweep"
    with _driver(tmp_path), pytest.raises(UsageError, match=drives), _driver(tmp_path):
        pass
    with _driver(tmp_path):  # free again
        pass


def test_an_address_where_nothing_listens_is_said_at_once(make_plan: MakePlan, tmp_path: Path) -> None:
    request = Launch(make_plan(), tmp_path, None, 1, lambda _: nullcontext(lambda: None), "127.0.0.1:1")
    with pytest.raises(UsageError, match=r"--ray-address 127\.0\.0\.1:1: no Ray cluster can be used: .*refused"):
        RayLauncher().launch(request)
    assert not (tmp_path / "study.db").exists()


@dataclass
class Steps:
    """One evaluation, told to the monitor."""

    def run(self, job: Job, monitor: Monitor) -> Ended:
        log = RunLog({2: {"s": {"eval/m": 1.0}}}, {1: {"kl": 1.0, "loss": 2.0}}, None)
        verdict = monitor(log)
        return Ended("complete" if verdict is Verdict.CONTINUE else "pruned", log)


def test_a_host_tells_only_what_is_asked_for(make_plan: MakePlan, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    host = TrialHost(Steps(), frozenset({"kl"}), str(tmp_path))
    (job,) = make_point(make_plan(), tmp_path, 0, {"schedule.eta": 0.9}).jobs
    ended = host.run(job, None, carries=False)
    assert ended.status == "complete"
    assert ended.log.training == {1: {"kl": 1.0}}
    log, _ = host.poll()
    assert log == ended.log
    assert host.poll() == (None, None)  # said once


# --- Real clusters ----------------------------------------------------------------------------------------------------


@contextmanager
def ray_cluster(nodes: int, **environment: str) -> Iterator[dict[str, Any]]:
    command = [sys.executable, str(Path(__file__).with_name("ray_cluster.py")), str(nodes)]
    settings = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", **PATIENT, **environment}
    for _ in range(3):  # Ray gives a node's helpers a fixed time to start, which a busy machine may not keep
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=settings)
        assert process.stdout is not None
        line = next((line for line in process.stdout if line.startswith("{")), "")
        if line:
            break
        process.wait(60)
    assert line, "the cluster did not start"
    try:
        yield json.loads(line)
    finally:
        process.communicate(timeout=120)


def sweep_file(folder: Path, trials: int, steps: int) -> Path:
    file = folder / "small.toml"
    file.write_text(
        'recipe = "shapes"\nsearch = { "schedule.eta" = { low = 0.5, high = 1.5 } }\n'
        f'objective = [{{ metric = "shapes:right" }}]\nbudget.trials = {trials}\n'
        f"override = {{ training.steps = {steps}, training.checkpoint_every = 2 }}\n"
        'sampler = { name = "random", seed = 0 }\n'
        f'[execution]\ncommand = ["{sys.executable}", "{FAKE_TRAINER}"]\npoll_seconds = 0.2\n'
    )
    return file


def start_driver(folder: Path, file: Path, address: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "amsd", "sweep", "run", str(file), "--output", str(folder / "out")]
    return subprocess.Popen(
        [*command, "--launcher", "ray", "--ray-address", address, "--workers", "3"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def trainings(folder: Path) -> dict[int, Path]:
    """Living processes of trials below `folder` -> run directory."""
    found = {}
    for process in psutil.process_iter():
        try:
            mark, command = process.environ().get(MARK, ""), process.cmdline()
            living = process.status() != psutil.STATUS_ZOMBIE
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        if mark.startswith(str(folder)) and "--output" in command and living:
            found[process.pid] = Path(command[command.index("--output") + 1])
    return found


def half_way(folder: Path, steps: int) -> list[int]:
    """Trainings that have come to the middle of their run, where they are held."""
    runs = {pid: run / "steps.txt" for pid, run in trainings(folder).items()}
    return [pid for pid, file in runs.items() if file.is_file() and file.read_text().split()[-1:] == [str(steps // 2)]]


def check_whole(folder: Path, trials: int, steps: int) -> list[int]:
    """Every trial complete, every step computed once; returns how often each was started."""
    results = load_sweep(folder / "out")
    assert [trial.state for trial in results.trials] == ["complete"] * trials
    for trial in results.trials:
        computed = (trial.runs[0].directory / "steps.txt").read_text().split()
        assert computed == [str(step) for step in range(1, steps + 1)], (trial.number, computed)
    return [trial.attempts for trial in results.trials]


@pytest.mark.slow
def test_three_nodes_of_which_one_is_killed(tmp_path: Path) -> None:
    steps, held = 12, tmp_path / "held"
    held.touch()
    with ray_cluster(3, FAKE_HELD_WHILE=str(held)) as cluster:
        driver = start_driver(tmp_path, sweep_file(tmp_path, trials=12, steps=steps), cluster["address"])
        try:
            until(lambda: len(half_way(tmp_path, steps)) == 3 or driver.poll() is not None, 300)
            assert driver.poll() is None, driver.communicate()
            os.kill(cluster["raylets"][0], signal.SIGKILL)
            until(lambda: len(half_way(tmp_path, steps)) == 2, 300)
            held.unlink()
            output, errors = driver.communicate(timeout=900)
        finally:
            driver.kill()
        assert driver.returncode == 0, output + errors
    attempts = check_whole(tmp_path, 12, steps)
    assert sorted(attempts) == [1] * 11 + [2]
    lost = load_sweep(tmp_path / "out").trials[attempts.index(2)]
    starts = (lost.runs[0].directory / "starts.txt").read_text().splitlines()
    assert int(starts[1].rpartition(" ")[2]) == steps // 2  # from its checkpoint


@pytest.mark.slow
def test_a_driver_that_is_killed_leaves_nobody_and_loses_nothing(tmp_path: Path) -> None:
    steps, held = 12, tmp_path / "held"
    held.touch()
    file = sweep_file(tmp_path, trials=5, steps=steps)
    with ray_cluster(2, FAKE_HELD_WHILE=str(held)) as cluster:
        driver = start_driver(tmp_path, file, cluster["address"])
        until(lambda: len(half_way(tmp_path, steps)) == 2 or driver.poll() is not None, 300)
        driver.kill()
        driver.communicate()
        until(lambda: not trainings(tmp_path), 30)
        held.unlink()
        driver = start_driver(tmp_path, file, cluster["address"])
        output, errors = driver.communicate(timeout=900)
        assert driver.returncode == 0, output + errors
        assert "was running when its driver ended" in errors
    check_whole(tmp_path, 5, steps)
    starts = [len(file.read_text().splitlines()) for file in tmp_path.glob("out/trials/*/seed-0/run/starts.txt")]
    assert sorted(starts) == [1, 1, 1, 2, 2]  # the third worker's trial was waiting for room
    for trial in locate(str(tmp_path / "out")).study.get_trials():
        assert trial.user_attrs[names.OWNER].get("lost", 0) == 0


@pytest.fixture(scope="module")
def local_ray() -> Iterator[Any]:
    import ray

    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", **PATIENT}
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False,
             _node_ip_address="127.0.0.1")  # fmt: skip
    yield ray
    ray.shutdown()


@pytest.mark.slow
def test_without_a_shared_folder_the_checkpoint_travels(make_plan: MakePlan, tmp_path: Path, local_ray: Any) -> None:
    """The actor works in a folder of its own node; it dies, and the next one gets the checkpoint from here."""
    steps, held = 12, tmp_path / "held"
    held.touch()
    plan = make_plan(override={"training.steps": steps, "training.checkpoint_every": 2})
    handle = create(plan, tmp_path / "sweep")
    inner = ProcessExecutor(plan.sweep.execution, environment={"FAKE_HELD_WHILE": str(held)})
    hosts = Hosts()
    executor = RayExecutor(handle, Need(1, 0), inner, hosts, shared=False)
    (job,) = make_point(plan, handle.directory, 0, {"schedule.eta": 0.9}).jobs
    half = job.run / f"checkpoints/step-{steps // 2:06d}"

    def monitor(log: RunLog) -> Verdict:
        if held.exists() and half.exists():  # it came here while it ran
            (host,) = [child for child in psutil.Process().children(recursive=True) if "TrialHost" in child.name()]
            host.kill()
            until(lambda: not carried(), 60)
            held.unlink()
        return Verdict.CONTINUE

    assert executor.run(job, monitor).status == "lost"
    ended = executor.run(job, monitor)
    hosts.close()
    assert ended.status == "complete", ended.error
    starts = (job.run / "starts.txt").read_text().splitlines()
    assert [int(line.rpartition(" ")[2]) for line in starts] == [0, steps // 2]
    assert (job.run / f"checkpoints/step-{steps:06d}").is_dir()


def carried() -> dict[int, Path]:
    """Living trainings in folders of a node's own."""
    return trainings(Path(tempfile.gettempdir()) / f"amsd-ray-{os.getuid()}")


@pytest.mark.slow
def test_pruning_reaches_the_trials(make_plan: MakePlan, tmp_path: Path, local_ray: Any) -> None:
    plan = make_plan(
        search={"schedule.eta": {"choices": [0.8, 0.9, 1.0, 1.5]}}, sampler={"name": "grid"}, budget={},
        pruner={"name": "median", "startup_trials": 3}, execution={"poll_seconds": 0.1},
    )  # fmt: skip
    handle = create(plan, tmp_path)
    assert drive(handle, 1, Need(1, 0), Formula(seconds=0.6)) is False
    results = results_of(handle)
    assert [trial.state for trial in results.trials] == ["complete"] * 3 + ["pruned"]
    assert [trial.worker for trial in results.trials] == ["ray:0"] * 4


@pytest.mark.slow
def test_real_trainings_on_ray_end_at_ctrl_c_and_go_on(tmp_path: Path) -> None:
    file = tmp_path / "small.toml"
    quick = "\n".join(f'"{key}" = {value}' for key, value in QUICK.items() if not key.startswith("training."))
    file.write_text(
        'recipe = "shapes"\nsearch = { "schedule.eta" = { low = 0.5, high = 1.0 } }\n'
        'objective = [{ metric = "shapes:right" }]\nbudget.trials = 2\nsampler = { name = "random", seed = 0 }\n'
        f'[override]\n"training.steps" = 12\n"training.checkpoint_every" = 6\n"tracking.mode" = "disabled"\n{quick}\n'
    )
    out = tmp_path / "out"
    command = [sys.executable, "-m", "amsd", "sweep", "run", str(file), "--output", str(out), "--launcher", "ray"]
    environment = {**os.environ, **PATIENT}
    driver = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        until(
            lambda: any(logged_steps(run) for run in out.glob("trials/*/seed-0/run")) or driver.poll() is not None, 300
        )
        driver.send_signal(signal.SIGINT)
        output, errors = driver.communicate(timeout=120)
    finally:
        driver.kill()
    assert driver.returncode == 130, output + errors
    assert not trainings(out)
    assert "complete" not in {trial.state for trial in load_sweep(out).trials}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [trial.state for trial in load_sweep(out).trials] == ["complete"] * 2
    for trial in load_sweep(out).trials:  # the announced end kept what was trained
        assert sorted(logged_steps(trial.runs[0].directory)) == list(range(1, 13))
