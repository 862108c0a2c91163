"""Where a study lives: SQLite, a journal file, PostgreSQL or a gRPC proxy; and patience while a server is away."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amsd.errors import RunError, UsageError

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

logger = logging.getLogger(__name__)

#: How long a storage may be unreachable (a database restart, a failover) before a worker gives up, in seconds.
PATIENCE = 600.0
_FIRST_WAIT, _LONGEST_WAIT = 0.2, 5.0
FORMS = "sqlite:///FILE, journal:FILE, postgresql://USER@HOST/DATABASE, grpc://HOST:PORT"


def default_url(directory: Path) -> str:
    """SQLite in the sweep's own folder."""
    return f"sqlite:///{directory.resolve() / 'study.db'}"


def without_password(url: str) -> str:
    """The URL as it may be shown and written; a password belongs in the environment or in a password file."""
    if "@" not in url:
        return url
    from sqlalchemy.engine import URL, make_url

    parts = make_url(url)  # its set(password=None) leaves the password as it is
    bare = URL.create(parts.drivername, parts.username, None, parts.host, parts.port, parts.database, parts.query)
    return bare.render_as_string()


def open_storage(url: str, patience: float = PATIENCE) -> BaseStorage:
    """Connect to a storage; every call waits for a server that is away, up to `patience` seconds.

    Raises:
        UsageError: the URL has no known form, a needed package is missing, or nothing answers there.
    """
    return patient(_connect(url), patience)


def _connect(url: str) -> BaseStorage:
    scheme = url.partition(":")[0].partition("+")[0]
    match scheme:
        case "sqlite" | "postgresql":
            return _database(url, scheme)
        case "journal":
            from optuna.storages import JournalStorage
            from optuna.storages.journal import JournalFileBackend

            path = Path(url.removeprefix("journal:").removeprefix("//"))
            path.parent.mkdir(parents=True, exist_ok=True)
            return JournalStorage(JournalFileBackend(str(path)))
        case "grpc":
            return _proxy(url)
        case _:
            raise UsageError(f"{url!r} is not a storage. Forms: {FORMS}.")


def _database(url: str, scheme: str) -> BaseStorage:
    from optuna.storages import RDBStorage, get_storage
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

    if scheme == "sqlite":
        Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        engine: dict[str, Any] = {"connect_args": {"timeout": 60}}
    else:
        # client_encoding: a database made in the C locale would else answer in bytes.
        engine = {"pool_pre_ping": True, "connect_args": {"connect_timeout": 10, "client_encoding": "utf8"}}
    try:
        return get_storage(RDBStorage(url, engine_kwargs=engine))
    except ModuleNotFoundError as error:
        raise UsageError(f"{without_password(url)}: needs the package {error.name}: install amsd[postgresql]") from None
    except (ArgumentError, NoSuchModuleError) as error:
        raise UsageError(f"{url!r} is not a storage ({error}). Forms: {FORMS}.") from None
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise UsageError(f"{without_password(url)}: cannot be opened: {reason}") from None


def _proxy(url: str) -> BaseStorage:
    try:
        import grpc  # type: ignore[import-untyped, unused-ignore]  # noqa: F401
    except ModuleNotFoundError:
        raise UsageError(f"{url}: needs the package grpcio: install amsd[grpc]") from None
    from optuna.storages import GrpcStorageProxy

    host, _, port = url.removeprefix("grpc://").rstrip("/").partition(":")
    if not host or not port.isdigit():
        raise UsageError(f"{url!r}: a gRPC proxy is named as grpc://HOST:PORT")
    proxy = GrpcStorageProxy(host=host, port=int(port))
    try:
        proxy.wait_server_ready(timeout=20)
    except TimeoutError:
        raise UsageError(
            f"{url}: nothing answers there. Start one with optuna.storages.run_grpc_proxy_server."
        ) from None
    return proxy


def patient(storage: BaseStorage, patience: float = PATIENCE) -> BaseStorage:
    """The same storage, whose every call is repeated while the server cannot be reached.

    A repeated "finish this trial" whose first try had arrived after all is a success; a repeated "start this trial"
    then looks like somebody else's start, and the trial is queued again by `amsd.sweep.liveness`.
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
