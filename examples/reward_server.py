"""A reward server: any function of images and prompts behind HTTP, in the standard library and numpy.

    python examples/reward_server.py shape_count.py:shape_count --port 8731
    amsd train shapes --set method.name=ram --set 'reward=[{name = "http://127.0.0.1:8731/"}]'

The protocol is in docs/rewards.md. GET answers {"version": "..."}. A POST has one line of JSON (shape, prompts,
groupwise, parameters), a line break, and the pixels as little-endian float32; the answer is {"scores": [...]}.
With --token-env NAME, requests must carry `Authorization: Bearer` with the value of that variable.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import importlib.util
import json
import os
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch

PROTOCOL = 1
LARGEST = 2**31
"""Bytes of a request."""


class RewardServer(ThreadingHTTPServer):
    """Answers with the scores of a function `(images, prompts, **parameters)`; one call at a time."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], score: Callable[..., Any], version: str, token: str = "") -> None:
        super().__init__(address, _Handler)
        self.score, self.version, self.token = score, version, token
        self.lock = threading.Lock()  # a network on one GPU has no use for two calls at once


class _Handler(BaseHTTPRequestHandler):
    """One request."""

    server: RewardServer

    def do_GET(self) -> None:
        """Say what the server computes with."""
        if self._allowed():
            self._answer(200, {"version": self.server.version, "protocol": PROTOCOL})

    def do_POST(self) -> None:
        """Score the images of a request."""
        body = self._body()
        if body is None or not self._allowed():
            return
        try:
            images, prompts, parameters = read_request(body)
        except (KeyError, TypeError, ValueError) as error:
            self._answer(400, {"error": f"not a request of protocol {PROTOCOL}: {error}"})
            return
        try:
            with self.server.lock, torch.no_grad():
                scores = self.server.score(images, prompts, **parameters)
        except Exception as error:  # noqa: BLE001  # the client shall read what went wrong
            self._answer(422, {"error": f"{type(error).__name__}: {error}"})
            return
        self._answer(200, {"scores": [float(score) for score in scores]})

    def _body(self) -> bytes | None:
        """The whole request; read before anything is answered, or the client would see a broken connection."""
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > LARGEST:
            self._answer(411, {"error": f"Content-Length must be a number up to {LARGEST}, but got {length!r}"})
            return None
        return self.rfile.read(int(length))

    def _allowed(self) -> bool:
        given = self.headers.get("Authorization", "")
        if self.server.token and not hmac.compare_digest(given.encode(), f"Bearer {self.server.token}".encode()):
            self._answer(401, {"error": "the token is missing or wrong"})
            return False
        return True

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the name in the base class
        """Write nothing per request."""


def read_request(body: bytes) -> tuple[torch.Tensor, list[str], dict[str, Any]]:
    """Images (B, 3, H, W), prompts and parameters of a request.

    Raises:
        ValueError, KeyError, TypeError: it is no request of this protocol.
    """
    line, _, pixels = body.partition(b"\n")
    header = json.loads(line)
    if header["protocol"] != PROTOCOL:
        raise ValueError(f"protocol {header['protocol']!r} is unknown")
    images = np.frombuffer(pixels, dtype="<f4").reshape(header["shape"]).astype(np.float32)  # a copy, so writable
    if len(header["prompts"]) != len(images):
        raise ValueError(f"{len(header['prompts'])} prompts for {len(images)} images")
    return torch.from_numpy(images), list(header["prompts"]), dict(header.get("parameters") or {})


def load(target: str) -> tuple[Callable[..., Any], str]:
    """The function that `FILE.py:FUNCTION` names, and a version that changes with the file."""
    file, _, name = target.rpartition(":")
    path = Path(file)
    spec = importlib.util.spec_from_file_location("served_reward", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{target}: expected FILE.py:FUNCTION")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name), hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description="Serve a reward for amsd.")
    parser.add_argument("target", help="FILE.py:FUNCTION")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (this machine only by default)")
    parser.add_argument("--port", type=int, default=8731)
    parser.add_argument("--token-env", help="environment variable with the token that requests must carry")
    arguments = parser.parse_args()
    token = os.environ[arguments.token_env] if arguments.token_env else ""
    score, version = load(arguments.target)
    with RewardServer((arguments.host, arguments.port), score, version, token) as server:
        print(f"Scores by {arguments.target} at http://{arguments.host}:{server.server_port}/", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("Ended.")


if __name__ == "__main__":
    main()
