"""The isolation that every other test relies on."""

from __future__ import annotations

import os
import socket
import urllib.request

import pytest

from tests.conftest import OutsideNetworkError


@pytest.mark.parametrize("address", [("192.0.2.1", 80), ("example.org", 443)])
def test_connections_to_other_machines_are_refused(address: tuple[str, int]) -> None:
    with socket.socket() as connection, pytest.raises(OutsideNetworkError, match=address[0]):
        connection.connect(address)


def test_http_clients_are_refused_too() -> None:
    with pytest.raises(OutsideNetworkError):
        urllib.request.urlopen("http://192.0.2.1/", timeout=1)


def test_loopback_is_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()


def test_no_account_of_the_user_is_visible() -> None:
    assert os.environ["WANDB_MODE"] == "offline"
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert not {"WANDB_API_KEY", "HF_TOKEN"} & set(os.environ)
