"""Ray (core, not Tune): trials as actors anywhere in a cluster, while this process alone holds the study.

Ray places the trials, notices dead nodes and ends what a dead driver left behind. The study stays Optuna's and needs no
server: whoever drives holds a lock on the sweep's folder, so a trial that is running when a driver starts is nobody's
and goes back into the queue at once.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from amsd.errors import RunError, UsageError
from amsd.sweep import optuna_access as names
from amsd.sweep.jobs import Stop, TrialExecutor, on_signals
from amsd.sweep.launchers import Launch, Launched
from amsd.sweep.launchers.local import follow, visible_gpus
from amsd.sweep.launchers.processes import ProcessExecutor
from amsd.sweep.launchers.ray_executor import Hosts, Need, RayExecutor
from amsd.sweep.schema import Execution
from amsd.sweep.storage import STORAGE_VARIABLE
from amsd.sweep.study import StudyHandle, create
from amsd.sweep.worker import Worker

logger = logging.getLogger(__name__)

#: Settings of this process that trials on other machines get too. They travel in memory, not in Ray's configuration.
_HANDED_ON = ("WANDB_", "HF_", "HUGGINGFACE_", "AMSD_")


class RayLauncher:
    """Runs a sweep on a Ray cluster, or on one that is started on this machine for as long as the sweep runs."""

    def launch(self, request: Launch) -> Launched:
        """Run the sweep to its end, or until it is interrupted.

        Raises:
            UsageError: Ray is missing, the cluster does not answer or has no room for a trial, or another process
                drives this sweep.
            RunError: the sweep stopped by itself.
        """
        execution = request.plan.sweep.execution
        with _driver(request.folder), _connected(request.address):
            need = resources(execution)
            _say_what_fits(need, request.workers)
            handle = create(request.plan, request.folder, request.storage)
            put_back(handle)
            inner = ProcessExecutor(execution, environment=_environment())
            with request.view(handle) as tick:
                interrupted = drive(handle, request.workers, need, inner, tick)
        return Launched(handle, interrupted)


def drive(
    handle: StudyHandle, workers: int, need: Need, inner: TrialExecutor, tick: Any = lambda: None, every: float = 2.0
) -> bool:
    """Run `workers` trials at a time until nothing is left to do; returns whether it was interrupted.

    Raises:
        RunError: the sweep stopped by itself.
    """
    stop = Stop()
    failures: list[Exception] = []

    hosts = Hosts()

    def work(index: int) -> None:
        executor = RayExecutor(handle, need, inner, hosts)
        try:
            Worker(handle, executor, stop, name=f"ray:{index}", alone=True).run()
        except Exception as error:  # noqa: BLE001  (raised again below)
            failures.append(error)

    threads = [threading.Thread(target=work, args=(index,), name=f"amsd-ray-{index}") for index in range(workers)]
    with on_signals(stop):
        for thread in threads:
            thread.start()
        try:
            follow(lambda: any(thread.is_alive() for thread in threads), stop, tick, every)
        finally:
            if any(thread.is_alive() for thread in threads):
                stop.request()
            for thread in threads:
                thread.join()
            hosts.close()
    if reason := handle.stop_reason():
        raise RunError(reason)
    if failures and not stop.requested:
        raise failures[0]
    return stop.requested


def put_back(handle: StudyHandle) -> None:
    """Queue the trials that a driver left running when it was killed; that counts as no failure of theirs."""
    for trial in handle.trials.running():
        trial_id = handle.trials.id_of(trial)
        owner = trial.user_attrs.get(names.OWNER, {})
        handle.trials.note(trial_id, names.OWNER, {**owner, "token": None})
        handle.trials.put_back(trial_id)
        logger.warning("Trial %d was running when its driver ended; it is queued again.", trial.number)


# --- What fits ------------------------------------------------------------------------------------------------------


def resources(execution: Execution) -> Need:
    """What a trial needs in the cluster that is connected; without GPUs there, trials run on the CPU."""
    import ray

    has_gpus = ray.cluster_resources().get("GPU", 0) > 0
    wanted = float(execution.processes) if execution.gpus is None else execution.gpus
    return Need(float(execution.cpus * execution.processes), wanted if has_gpus or execution.gpus else 0.0)


def fitting(need: Need, nodes: list[Mapping[str, float]]) -> int:
    """How many trials the nodes hold at once."""
    counts = []
    for node in nodes:
        by_cpu = int(node.get("CPU", 0.0) / need.cpus + 1e-6) if need.cpus else 10**6
        shares = int(1 / need.gpus + 1e-6) * int(node.get("GPU", 0.0)) if 0 < need.gpus < 1 else None
        by_gpu = shares if shares is not None else int(node.get("GPU", 0.0) / need.gpus) if need.gpus else by_cpu
        counts.append(min(by_cpu, by_gpu))
    return sum(counts)


def _say_what_fits(need: Need, workers: int) -> None:
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fits = fitting(need, nodes)
    each = f"{need.cpus:g} CPUs and {need.gpus:g} GPUs"
    if fits == 0:
        found = ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
        raise UsageError(f"no node of the cluster has room for a trial of {each} (nodes: {found}). "
                         "Lower execution.cpus, execution.gpus or execution.processes.")  # fmt: skip
    if fits < workers:
        logger.warning(
            "%d trials of %s fit into this cluster at once; --workers %d waits for room.", fits, each, workers
        )


# --- The cluster ----------------------------------------------------------------------------------------------------


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """A connection to the cluster at `address`; without one, a cluster of this machine that ends with the block.

    Raises:
        UsageError: Ray is not installed, or nothing answers there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ModuleNotFoundError:
        raise UsageError("--launcher ray needs the package ray: uv pip install 'amsd[ray]'") from None
    if ray.is_initialized():  # somebody who calls us from Python has connected already
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address is None:
            ray.init(num_gpus=len(visible_gpus()), include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)
        else:
            _require_answer(address)
            ray.init(address=address, **quiet)
    except (OSError, ValueError, RuntimeError) as error:  # OSError: no connection, in time or at all
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(f"--ray-address {address or '(none)'}: no Ray cluster can be used: {reason}. Start one with "
                         "`ray start --head`, or leave --ray-address out.") from None  # fmt: skip
    try:
        yield
    finally:
        ray.shutdown()


def _require_answer(address: str) -> None:
    """Fail at once where nothing listens: Ray itself would try for minutes. `auto` and other schemes are Ray's own."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isascii() and port.isdigit() and len(port) < 6:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=10):
            return


@contextmanager
def _driver(folder: Path) -> Iterator[None]:
    """The right to drive the sweep of this folder; it ends with the process, however that ends.

    Raises:
        UsageError: another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "driver.lock").open("a+") as lock:
        deadline = time.monotonic() + 5  # a driver that was just killed
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    lock.seek(0)
                    raise UsageError(
                        f"{folder}: process {lock.read().strip() or '?'} drives this sweep already"
                    ) from None
                time.sleep(0.2)
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def _environment() -> dict[str, str]:
    return {
        name: value for name, value in os.environ.items() if name.startswith(_HANDED_ON) and name != STORAGE_VARIABLE
    }
