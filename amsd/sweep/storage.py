"""Where a study lives: SQLite, a journal file, PostgreSQL or a gRPC proxy; and patience while a server is away."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amsd.errors import RunError, UsageError
from amsd.sweep.optuna_access import cached
from amsd.urls import STORAGES, printable, scheme_of, scrubbed

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

logger = logging.getLogger(__name__)

#: How long a storage may be unreachable (a database restart, a failover) before a worker gives up, in seconds.
PATIENCE = 600.0
#: How long a gRPC proxy may take to answer at first, in seconds.
PROXY_SECONDS = 20.0
_FIRST_WAIT, _LONGEST_WAIT = 0.2, 5.0
#: How a worker is told the storage without its password showing in the list of processes.
STORAGE_VARIABLE = "AMSD_SWEEP_STORAGE"
FORMS = "sqlite:///FILE, journal:FILE, postgresql://USER@HOST/DATABASE, grpc://HOST:PORT"


def default_url(directory: Path) -> str:
    """SQLite in the sweep's own folder."""
    return f"sqlite:///{directory.resolve() / 'study.db'}"


def is_storage(source: str) -> bool:
    """Whether `source` is a storage URL, and not the path of a folder or a file."""
    return scheme_of(source) in (*STORAGES, "postgres") and not Path(source).exists()


def open_storage(url: str) -> BaseStorage:
    """Connect to a storage; every call waits for a server that is away, up to `PATIENCE` seconds.

    Raises:
        UsageError: the URL has no known form, a needed package is missing, or nothing answers there.
    """
    return patient(_connect(url))


def _connect(url: str) -> BaseStorage:
    match scheme_of(url):
        case "sqlite":
            return _sqlite(url)
        case "postgresql" | "postgres":
            # client_encoding: a database made in the C locale would else answer in bytes.
            arguments = {"connect_timeout": 10, "client_encoding": "utf8"}
            server = re.sub(r"^postgres(?=[:+])", "postgresql", url)
            return _database(server, url, {"pool_pre_ping": True, "connect_args": arguments})
        case "journal":
            from optuna.storages import JournalStorage
            from optuna.storages.journal import JournalFileBackend

            path = Path(re.sub("^journal:(//)?", "", url)).expanduser()
            if path.exists() and not path.is_file():  # a device would be read without end
                raise UsageError(f"{printable(url)!r}: {path} is no file. Name a file for the journal: journal:FILE.")
            path.parent.mkdir(parents=True, exist_ok=True)
            return JournalStorage(JournalFileBackend(str(path)))
        case "grpc":
            return _proxy(url)
        case _:
            raise UsageError(f"{printable(url)!r} is not a storage. Forms: {FORMS}.")


def sqlite_path(url: str) -> tuple[Path, str]:
    """File and query of `sqlite:///FILE[?name=value...]`; any other question or percent sign belongs to the file."""
    rest = re.sub(r"^sqlite(\+\w+)?:///", "", url)
    query = re.search(r"\?[^?/=&]+=[^?/=&]*(&[^?/=&]+=[^?/=&]*)*$", rest)
    file = rest[: query.start()] if query else rest
    return Path(file).expanduser(), query.group()[1:] if query else ""


def _sqlite(url: str) -> BaseStorage:
    """A file whose path may have every character: it never becomes part of a URL, unless options follow it."""
    import sqlite3

    from sqlalchemy.pool import QueuePool

    if not re.match(r"sqlite(\+\w+)?:///.", url):
        raise UsageError(f"{printable(url)!r} is not a storage. Forms: {FORMS}.")
    path, query = sqlite_path(url)
    if path.name == ":memory:":
        raise UsageError(
            f"{url!r} lives in one process alone, so no worker could join it. Name a file: sqlite:///FILE."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    if query:
        return _database(url, url, {"connect_args": {"timeout": 60}})

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(path, timeout=60, check_same_thread=False)

    return _database("sqlite://", url, {"creator": connect, "poolclass": QueuePool})


def _database(target: str, url: str, engine: dict[str, Any]) -> BaseStorage:
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

    shown = printable(url)
    try:
        return cached(RDBStorage(target, engine_kwargs=engine))
    except ImportError as error:  # Optuna raises one of its own from SQLAlchemy's
        cause = error.__cause__ if isinstance(error.__cause__, ImportError) else error
        driver = cause.name or "that drives this database"
        fix = (
            "Install it with `uv pip install 'amsd[postgresql]'`." if target.startswith("postgresql") else "Install it."
        )
        raise UsageError(f"{shown}: needs the package {driver}, and it is not installed. {fix}") from None
    except (ArgumentError, NoSuchModuleError, ValueError, TypeError) as error:
        hint = "In a user's name or a password, write @ as %40, / as %2F, : as %3A and ? as %3F."
        reason = scrubbed(str(error).splitlines()[0], url)
        raise UsageError(f"{shown!r} is not a storage ({reason}). {hint} Forms: {FORMS}.") from None
    except (SQLAlchemyError, OSError) as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise UsageError(f"{shown}: cannot be opened: {scrubbed(reason, url)}") from None


def _proxy(url: str) -> BaseStorage:
    try:
        import grpc  # type: ignore[import-untyped, unused-ignore]  # noqa: F401
    except ModuleNotFoundError:
        raise UsageError(f"{printable(url)}: needs the package grpcio: uv pip install 'amsd[grpc]'") from None
    from optuna.storages import GrpcStorageProxy

    host, _, port = url.removeprefix("grpc://").rstrip("/").partition(":")
    if not host or not (port.isascii() and port.isdigit() and len(port) < 6):
        raise UsageError(f"{printable(url)!r}: a gRPC proxy is named as grpc://HOST:PORT")
    proxy = GrpcStorageProxy(host=host, port=int(port))
    try:
        proxy.wait_server_ready(timeout=PROXY_SECONDS)
    except TimeoutError:
        raise UsageError(
            f"{printable(url)}: nothing answers there. Start one with optuna.storages.run_grpc_proxy_server."
        ) from None
    return proxy


def patient(storage: BaseStorage, patience: float = PATIENCE) -> BaseStorage:
    """The same storage, whose every call is repeated while the server cannot be reached.

    A repeated "finish this trial" whose first try had arrived after all is a success; a repeated "start this trial"
    then looks like somebody else's start, and the trial is queued again by `amsd.sweep.claims`.
    """
    from optuna.storages import BaseStorage as Base

    names = [name for name in dir(Base) if not name.startswith("_") and callable(getattr(Base, name))]
    methods: dict[str, Any] = {name: _repeated(storage, name, patience) for name in names}
    kind: type[BaseStorage] = type("PatientStorage", (Base,), methods)
    return kind()


def _repeated(storage: BaseStorage, name: str, patience: float) -> Callable[..., Any]:
    call = getattr(storage, name)

    def method(_: BaseStorage, *args: Any, **kwargs: Any) -> Any:
        return _insist(lambda: call(*args, **kwargs), name, patience)

    return method


def _insist(call: Callable[[], Any], name: str, patience: float) -> Any:
    from optuna.exceptions import UpdateFinishedTrialError

    transient = _transient()
    deadline, wait, failed = time.monotonic() + patience, _FIRST_WAIT, False
    while True:
        try:
            return call()
        except UpdateFinishedTrialError:
            if failed and name == "set_trial_state_values":
                return True
            raise
        except transient as error:
            if time.monotonic() + wait > deadline:
                raise RunError(f"the sweep's storage did not answer for {patience:g} s: {_reason(error)}") from error
            if not failed:
                logger.warning("The sweep's storage does not answer (%s); waiting for it.", _reason(error))
            failed = True
            time.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT)


@cache
def _transient() -> tuple[type[Exception], ...]:
    """Errors of a server that may come back."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import DBAPIError

    try:
        from grpc import RpcError
    except ModuleNotFoundError:
        return (StorageInternalError, DBAPIError)
    return (StorageInternalError, DBAPIError, RpcError)


def _reason(error: BaseException) -> str:
    cause = error.__cause__ or error
    return str(getattr(cause, "orig", None) or cause).strip().splitlines()[0]
