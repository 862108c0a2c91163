"""A real Slurm on this machine: a controller and nodes on the loopback, as Debian's packages install them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol")

CONFIGURATION = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/none
CredType=cred/none
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/%n
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=30
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
PartitionName=main Nodes=ALL Default=YES State=UP
"""


def usable() -> bool:
    """Whether Slurm is installed, and this user may start it."""
    return os.geteuid() == 0 and all(_found(program) for program in PROGRAMS)


@contextmanager
def slurm_cluster(folder: Path, nodes: int, cpus: int = 2) -> Iterator[dict[str, str]]:
    """Start the daemons; yields the environment in which Slurm's commands find them. They end with the block."""
    host = socket.gethostname().partition(".")[0]
    ports = _free_ports(nodes + 1)
    lines = [
        f"NodeName=n{index} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} State=UNKNOWN"
        for index, port in enumerate(ports[1:])
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("state", *(f"n{index}" for index in range(nodes))):
        (folder / name).mkdir()
    file = folder / "slurm.conf"
    text = CONFIGURATION.format(host=host, port=ports[0], folder=folder)
    file.write_text(text + "\n".join(lines) + "\n", encoding="utf-8")
    environment = {**os.environ, "SLURM_CONF": str(file)}
    # In the foreground: they are children of the tests, and end with them.
    commands = [["slurmctld", "-D", "-c"], *(["slurmd", "-D", "-N", f"n{index}"] for index in range(nodes))]
    daemons = [
        subprocess.Popen(
            [_found(name) or name, *rest], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for name, *rest in commands
    ]
    try:
        _wait_for(nodes, environment)
        yield environment
    finally:
        subprocess.run(["scancel", "--user=root"], env=environment, capture_output=True, timeout=60, check=False)
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            try:
                daemon.wait(30)
            except subprocess.TimeoutExpired:
                daemon.kill()


def _found(program: str) -> str | None:
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin:/sbin")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _wait_for(nodes: int, environment: dict[str, str], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while True:
        found = subprocess.run(
            ["sinfo", "--noheader", "--Node", "--format=%T"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if found.stdout.split().count("idle") == nodes:
            return
        assert time.monotonic() < deadline, f"Slurm did not start: {found.stdout} {found.stderr}"
        time.sleep(0.2)
