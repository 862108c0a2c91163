"""Speaks what the W&B client asks of a server for a sweep: sweep creation, agents, heartbeats with run commands."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROJECT = {"id": "p1", "name": "amsd", "entity": {"id": "e1", "name": "lab"}}


class SweepServer:
    """A W&B server on loopback that hands out `points` one by one, then tells the agents to exit."""

    def __init__(self, points: list[Mapping[str, Any]]) -> None:
        self.points = list(points)
        self.sweeps: list[dict[str, Any]] = []
        self.agents = 0
        self.beats: list[dict[str, bool]] = []
        self.handed: dict[str, Mapping[str, Any]] = {}
        self.stop_runs: list[str] = []
        self.unknown: list[str] = []
        self._lock = threading.Lock()
        server = self

        class SweepHandler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self._answer(server.answer(json.loads(body)) if self.path == "/graphql" else {})

            def do_GET(self) -> None:
                self._answer({})

            def _answer(self, data: Any) -> None:
                text = json.dumps(data).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), SweepHandler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> SweepServer:
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Data of one GraphQL request."""
        query, variables = request["query"], request.get("variables") or {}
        with self._lock:
            if "upsertSweep" in query:
                self.sweeps.append(variables)
                upserted = {"sweep": {"name": "sweep1", "project": PROJECT}, "configValidationWarnings": []}
                return {"data": {"upsertSweep": upserted}}
            if "createAgent" in query:
                self.agents += 1
                return {"data": {"createAgent": {"agent": {"id": f"agent{self.agents}"}}}}
            if "agentHeartbeat" in query:
                commands = json.dumps(self._commands(json.loads(variables["runState"])))
                return {"data": {"agentHeartbeat": {"agent": {"id": variables["id"]}, "commands": commands}}}
            if "viewer" in query:
                viewer = {"id": "u1", "username": "user", "email": "", "admin": False, "flags": "{}", "entity": "lab"}
                return {"data": {"viewer": {**viewer, "teams": {"edges": []}, "apiKeys": {"edges": []}}}}
            if "serverInfo" not in query:
                self.unknown.append(query)
        return {"data": {}}

    def _commands(self, running: dict[str, bool]) -> list[dict[str, Any]]:
        self.beats.append(running)
        if running:
            stopping = [name for name in running if name in self.stop_runs]
            return [{"type": "stop", "run_id": name} for name in stopping]
        if not self.points:
            return [{"type": "exit"}]
        name = f"run{len(self.handed)}"
        point = self.points.pop(0)
        self.handed[name] = point
        arguments = {key: {"value": value} for key, value in point.items()}
        return [{"type": "run", "run_id": name, "args": arguments, "program": ""}]
