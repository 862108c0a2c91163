"""In a pipe a download says how far it is; the hub's client itself says nothing there."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from amsd import downloads
from amsd.hub import Repository

SIZE, PARTS = 4_000_000, 8
FILE, WHAT = "weights.bin", "model.pretrained = 'someone/large'"


class _Slow(BaseHTTPRequestHandler):
    """One file of a repository, as the hub gives it, in parts with a pause before each.

    The last part waits until something was said: how quick the machine is does not matter.
    """

    said = threading.Event()

    def do_HEAD(self) -> None:
        self.send_response(200)
        if FILE in self.path:
            self.send_header("ETag", '"0123456789abcdef"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("Content-Length", str(SIZE))
        else:
            self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        for part in range(PARTS if FILE in self.path else 0):
            time.sleep(0.1)
            if part == PARTS - 1:
                self.said.wait(20)
            self.wfile.write(bytes(SIZE // PARTS))

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def slow_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", SIZE // PARTS)  # 10 MB are written at once
    monkeypatch.setattr(downloads, "_GLANCE", 0.05)
    monkeypatch.setattr(downloads, "INTERVAL", 0.2)
    _Slow.said.set()
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("slow_hub")
def test_a_pipe_gets_lines_with_the_amount_and_one_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    say = downloads._say

    def saying(line: str) -> None:
        say(line)
        _Slow.said.set()

    _Slow.said.clear()
    monkeypatch.setattr(downloads, "_say", saying)
    path = Repository("someone/large").downloaded(FILE, WHAT, "Download it once.")
    assert path is not None
    assert path.stat().st_size == SIZE
    out, err = capsys.readouterr()
    assert out == ""
    *between, last = err.splitlines()
    assert between
    assert all(line.startswith("downloading someone/large from the hub: ") and "/s" in line for line in between)
    assert last.startswith("downloaded someone/large from the hub: 4 MB in ")
    assert Repository("someone/large").file([FILE], WHAT, "Download it once.") == path  # from the cache
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("slow_hub")
@pytest.mark.parametrize(("name", "value"), [("HF_HUB_DISABLE_PROGRESS_BARS", "1"), ("LOCAL_RANK", "1")])
def test_who_wants_no_progress_and_other_processes_get_none(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, value)
    assert Repository("someone/large").downloaded(FILE, WHAT, "Download it once.") is not None
    assert "someone/large" not in capsys.readouterr().err


def test_what_was_there_before_and_links_do_not_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "before").write_bytes(bytes(5_000_000))
    with downloads.told("someone/large", tmp_path):
        (tmp_path / "link").symlink_to(tmp_path / "before")
    assert capsys.readouterr().err == ""
    with downloads.told("someone/large", tmp_path):
        (tmp_path / "new").write_bytes(bytes(2_500))
    assert capsys.readouterr().err.startswith("downloaded someone/large from the hub: 2.5 kB in ")
