from __future__ import annotations

import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import wandb

from amsd.tracking import connection
from amsd.tracking.connection import Connection, connect, unreachable


@pytest.fixture
def closed_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_a_server_that_answers_with_an_error_is_reachable(closed_address: str) -> None:
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)  # answers 501 to everything
    threading.Thread(target=server.handle_request, daemon=True).start()
    assert unreachable(f"http://127.0.0.1:{server.server_port}") is None
    server.server_close()
    assert "refused" in (unreachable(closed_address) or "")


@pytest.mark.parametrize("wanted", ["auto", "online"])
def test_offline_with_the_reason(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "login", lambda **_: False)
    found = connect(wanted)  # type: ignore[arg-type]
    assert found.mode == "offline"
    assert "no W&B key" in (found.reason or "")
    monkeypatch.setattr(wandb, "login", lambda **_: True)
    monkeypatch.setattr(connection, "unreachable", lambda address: "no route")
    found = connect(wanted)  # type: ignore[arg-type]
    assert found.mode == "offline"
    assert "no route" in (found.reason or "")
    monkeypatch.setattr(connection, "unreachable", lambda address: None)
    assert connect(wanted) == Connection("online")  # type: ignore[arg-type]


def test_environment_decides_for_auto_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert connect("auto").mode == "disabled"
    assert connect("offline") == Connection("offline")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert connect("auto").mode == "offline"
