"""What holds for every test: no network beyond this machine, no settings of this user, one thread per process."""

from __future__ import annotations

import ipaddress
import logging
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# The same examples everywhere, and no time limit on a busy machine.
settings.register_profile("amsd", deadline=None, derandomize=True)
settings.load_profile("amsd")

_SCRATCH = Path(tempfile.mkdtemp(prefix="amsd-tests-"))
_USER_SETTINGS = ("AMSD_", "WANDB_", "HF_", "HUGGINGFACE_", "ACCELERATE_", "OPTUNA_", "PG")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")  # servers of tests are on this machine
_LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_TERMINAL = ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "CLICOLOR_FORCE", "TTY_COMPATIBLE")


def _isolate() -> None:
    # Without bytecode every command that a test starts would compile 6,000 files again: 10 s of a processor.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    # A shell in the background and nohup have the tests ignore Ctrl-C and SIGHUP, which some send to themselves.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    # At import, before any library reads its settings; processes that tests start inherit them.
    unset = _LAUNCHER + _TERMINAL
    for key in [key for key in os.environ if key.startswith(_USER_SETTINGS) or key in unset or key.upper() in _PROXIES]:
        del os.environ[key]
    os.environ |= {
        "AMSD_CACHE": str(_SCRATCH / "amsd"),
        "HF_HOME": str(_SCRATCH / "huggingface"),
        "HF_HUB_OFFLINE": "1",
        "TORCH_HOME": str(_SCRATCH / "torch"),
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "WANDB_CONFIG_DIR": str(_SCRATCH / "wandb-config"),
        "WANDB_CACHE_DIR": str(_SCRATCH / "wandb-cache"),
        "WANDB_DATA_DIR": str(_SCRATCH / "wandb-data"),
        "NETRC": str(_SCRATCH / "netrc"),
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "COLUMNS": "120",
        "TERM": "xterm-256color",
        "NO_COLOR": "1",
    }


_isolate()


def pytest_unconfigure() -> None:
    """Leave nothing behind."""
    shutil.rmtree(_SCRATCH, ignore_errors=True)


@pytest.fixture(autouse=True)
def room_on_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan of a large model does not depend on what this machine's disk has left."""
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(path)._replace(free=2**50))


class OutsideNetworkError(RuntimeError):
    """A test reached for another machine."""


def _stays_here(family: int, address: Any) -> bool:
    if family not in (socket.AF_INET, socket.AF_INET6):
        return True  # a unix socket
    host = str(address[0])
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host in ("", "localhost", socket.gethostname())


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Stable Diffusion, which nobody may write to."""
    from tests import pipelines

    folder = tmp_path_factory.mktemp("models") / "sd"
    pipelines.stable_diffusion(scheduler=pipelines.ddim()).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True, scope="session")
def no_outside_network() -> Iterator[None]:
    """Connections leave this process to loopback and to unix sockets only."""
    patch = pytest.MonkeyPatch()
    for name in ("connect", "connect_ex"):
        patch.setattr(socket.socket, name, _guarded(getattr(socket.socket, name)))
    yield
    patch.undo()


def _guarded(connect: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(self: socket.socket, address: Any) -> Any:
        if not _stays_here(self.family, address):
            raise OutsideNetworkError(f"a test tried to connect to {address!r}")
        return connect(self, address)

    return guarded


@pytest.fixture(autouse=True)
def no_handler_of_a_closed_stream() -> Iterator[None]:
    """A command that was run inside a test logs to that test's stream, and to no later one's."""
    yield
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, logging.StreamHandler) and getattr(handler.stream, "closed", False):
            root.removeHandler(handler)
            root.setLevel(logging.WARNING)


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _program(*names: str) -> bool:
    folders = [os.environ.get("PATH", ""), *map(str, Path("/usr/lib/postgresql").glob("*/bin"))]
    return any(shutil.which(name, path=os.pathsep.join(folders)) for name in names)


def openwandb() -> str | None:
    """The program of the W&B-compatible server, which lives in an environment of its own."""
    return shutil.which(os.environ.get("OPENWANDB", "openwandb"))


#: What a marker needs -> whether this machine has it. A skip is listed in the summary with its reason.
_NEEDS: dict[str, tuple[str, Callable[[], bool]]] = {
    "gpu": ("a CUDA device", _cuda),
    "postgresql": ("PostgreSQL's initdb", lambda: _program("initdb")),
    "browser": ("a Chromium", lambda: _program("chromium", "chromium-browser", "google-chrome", "chrome")),
    "wandb_server": ("openwandb (nox -s wandb_server installs it beside the tests)", lambda: bool(openwandb())),
}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, with a reason, what this machine cannot run."""
    for marker, (needed, present) in _NEEDS.items():
        if item.get_closest_marker(marker) and not present():
            pytest.skip(f"{marker}: {needed} is not on this machine")
