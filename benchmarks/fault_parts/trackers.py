"""W&B dying while a run goes on: its own process killed or frozen, and a server that fails, lies idle or goes away.

Faults of the server need openwandb, a W&B-compatible server, behind a proxy that turns bad in the middle of a run;
OPENWANDB names its program (see the nox session `wandb_server`). Without it only the process is struck.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil

from benchmarks.fault_parts.runs import STEPS, Scene, log, wait_for
from benchmarks.fault_parts.tally import Attempt

#: Seconds from the last logged step to the end of the process.
LONGEST_END = 30.0
PROCESS = ("killed", "stopped", "killed at the end")
SERVER = ("500", "slow", "silent", "gone")
#: The key that openwandb prints at its start: every installation has it.
KEY = "local" + 40 * "0"


class Proxy:
    """Passes requests on to a server, until `mode` says otherwise."""

    def __init__(self, target: str) -> None:
        self.mode = "fine"
        proxy = self

        class TrackerHandler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, headers, answer = proxy.answer(self.command, self.path, dict(self.headers), body, target)
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_POST = do_PUT = do_PATCH = do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), TrackerHandler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def answer(
        self, method: str, path: str, headers: dict[str, str], body: bytes, target: str
    ) -> tuple[int, dict[str, str], bytes]:
        """What the client gets: status, headers, body."""
        if self.mode == "500":
            return 500, {}, b"{}"
        if self.mode == "slow":
            time.sleep(8)
        if self.mode == "silent":
            time.sleep(600)
        kept = {name: value for name, value in headers.items() if name.lower() not in ("host", "accept-encoding")}
        request = urllib.request.Request(target + path, body or None, kept, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as found:
                return found.status, dict(found.headers), found.read()
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), error.read()
        except OSError:
            return 502, {}, b"{}"

    def close(self) -> None:
        """Go away."""
        self._http.shutdown()
        self._http.server_close()


@contextmanager
def server(folder: Path) -> Iterator[str | None]:
    """Address of a W&B-compatible server on loopback; None where there is none to start."""
    program = shutil.which(os.environ.get("OPENWANDB", "openwandb"))
    if program is None:
        yield None
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    options = ["--host", "127.0.0.1", "--port", str(port), "--data-dir", str(folder / "openwandb"), "--base-url", url]
    with (folder / "openwandb.log").open("wb") as said:
        process = subprocess.Popen([program, "serve", *options], stdout=said, stderr=said)
    try:
        deadline = time.monotonic() + 60
        while not _answers(url) and time.monotonic() < deadline:
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def strike(scene: Scene, url: str | None, number: int, draw: random.Random) -> Attempt:
    """One run whose W&B fails after a few steps: it ends in time, and nothing of it is lost."""
    faults = (*PROCESS, *SERVER) if url is not None else PROCESS
    fault = faults[number % len(faults)]
    run = scene.folder / f"wandb-{number}"
    proxy = Proxy(url) if url is not None and fault in SERVER else None
    online = {"WANDB_BASE_URL": proxy.url, "WANDB_API_KEY": KEY} if proxy is not None else {}
    os.environ |= online
    mode = "online" if proxy is not None else "offline"
    try:
        child = scene.train(run, 'tracking.trackers="wandb"', f"tracking.mode={mode}")
        wait_for(run, STEPS if fault == "killed at the end" else draw.randint(2, 4), child)
        if proxy is None:
            for process in psutil.Process(child.pid).children(recursive=True):
                if process.name().startswith("wandb-core"):
                    process.send_signal(signal.SIGSTOP if fault == "stopped" else signal.SIGKILL)
        else:
            proxy.mode = fault
            if fault == "gone":
                proxy.close()
        code = child.wait()
    finally:
        for name in online:
            del os.environ[name]
    ended = time.time()
    took = ended - _last_step(run)
    wrong = "" if code == 0 else f"ended with {code}"
    if took > LONGEST_END:
        wrong = wrong or f"ended {took:.1f} s after its last step"
    wrong = wrong or _lost(scene, run)
    note = f"{fault}: ended {took:.1f} s after its last step, {len(_notices(run))} notice(s)"
    return Attempt(f"{fault}: {wrong}" if wrong else "", child.said, note=note)


def _last_step(run: Path) -> float:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return max(float(line["time"]) for line in lines if "loss" in line)


def _notices(run: Path) -> list[dict[str, Any]]:
    return [line for line in log(run) if str(line.get("notice", "")).startswith("wandb")]


def _lost(scene: Scene, run: Path) -> str:
    """What is neither in the log nor in W&B's files, which `wandb sync` uploads."""
    own = [line for line in log(run) if not str(line.get("notice", "")).startswith("wandb")]
    if own != log(scene.whole):
        return "the log differs"
    found: set[int] = set()
    for folder in sorted((run / "wandb").glob("*run-2*")):
        found |= _steps_in(folder)
    return "" if found == set(range(1, STEPS + 1)) else f"W&B's files hold the steps {sorted(found)}"


def _steps_in(folder: Path) -> set[int]:
    program = str(Path(sys.executable).with_name("wandb"))
    asked = subprocess.run(
        [program, "leet", "inspect", "--json", str(folder)], capture_output=True, text=True, timeout=120, check=False
    )
    records = [json.loads(line) for line in asked.stdout.splitlines() if line.startswith("{")]
    items = [record["history"]["item"] for record in records if record.get("type") == "history"]
    return {item["step"] for item in items if "loss" in item}
