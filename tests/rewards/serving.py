"""Reward servers of tests, on the loopback address."""

from __future__ import annotations

import importlib.util
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> Any:
    """A module of `examples/`."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def serving(score: Any, version: str = "1", token: str = "") -> Iterator[str]:
    """The URL of the reference server with a function of its own."""
    with running(example("reward_server").RewardServer(("127.0.0.1", 0), score, version, token)) as url:
        yield url


class Script(ThreadingHTTPServer):
    """A server that answers POSTs as it is told, the last answer again and again."""

    daemon_threads = True

    def __init__(self, answers: Sequence[tuple[int, bytes]], delay: float = 0.0, **headers: str) -> None:
        super().__init__(("127.0.0.1", 0), _Scripted)
        self.answers, self.delay, self.headers = list(answers), delay, headers
        self.bodies: list[bytes] = []


class _Scripted(BaseHTTPRequestHandler):
    server: Script

    def do_GET(self) -> None:
        self._send(200, b'{"version": 1}')

    def do_POST(self) -> None:
        self.server.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        time.sleep(self.server.delay)
        answers = self.server.answers
        self._send(*(answers.pop(0) if len(answers) > 1 else answers[0]))

    def _send(self, status: int, content: bytes) -> None:
        self.send_response(status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        with suppress(BrokenPipeError):  # the client has gone
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@contextmanager
def running(server: Any) -> Iterator[str]:
    """Serve in a thread; gives the URL."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/score"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def reply(scores: object) -> tuple[int, bytes]:
    """An answer with scores."""
    return 200, json.dumps({"scores": scores}).encode()
