"""One module speaks to the hub: the same rules and the same words for models, weights of rewards and prompts."""

from __future__ import annotations

import ast
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import amsd
from amsd.diffusion.loading import locate
from amsd.errors import UsageError
from amsd.prompts import load_prompts
from amsd.recipe import Model
from amsd.rewards.checkpoints import find_file, find_folder

ANSWERS = {"missing": (401, "RepoNotFound"), "gated": (403, "GatedRepo"), "revised": (404, "RevisionNotFound")}
ACCESS = {"HfApi", "hf_hub_download", "snapshot_download", "try_to_load_from_cache", "constants", "errors", "utils"}

#: What asks the hub for repository OWNER/NAME, by what is wanted of it.
CALLERS: dict[str, Callable[[str], object]] = {
    "model": lambda name: locate(Model(pretrained=name)),
    "file of a reward": lambda name: find_file(f"hub:{name}/weights.pt", "reward 'x', option checkpoint"),
    "folder of a reward": lambda name: find_folder(name, "reward 'x', option model", [("config.json",)]),
    "prompts": lambda name: load_prompts(f"hub:{name}/prompts.txt"),
}


class _Hub(BaseHTTPRequestHandler):
    """The hub as far as errors go: a status and its error code by the repository's name."""

    def do_GET(self) -> None:
        name = next((known for known in ANSWERS if known in self.path), None)
        status, code = (200, "") if name is None else ANSWERS[name]
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    # The address of a file is made from a copy of ENDPOINT.
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        address + "/{repo_id}/resolve/{revision}/{filename}",
    )
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("someone/gated", ("is gated", "accept the terms of someone/gated", "hf auth login")),
        ("someone/missing", ("someone/missing does not exist on the hub, or is private", "Download it once")),
    ],
)
def test_what_the_hub_refuses_is_said_alike_for_all(caller: str, name: str, words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        CALLERS[caller](name)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.usefixtures("hub")
def test_a_revision_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match=r"someone/revised has no revision 'v9' on the hub"):
        find_file("hub:someone/revised/weights.pt@v9", "reward 'x', option checkpoint")


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
@pytest.mark.parametrize("caller", CALLERS)
def test_a_forbidden_request_is_not_made(caller: str, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv(variable, "yes")
    monkeypatch.setattr("amsd.hub.unreachable", lambda address: pytest.fail(f"a request was made to {address}"))
    with pytest.raises(UsageError, match=r"is not in the local cache and HF_HUB_OFFLINE is set\..*ownload it once"):
        CALLERS[caller]("someone/model")


def test_no_other_module_asks_the_hub() -> None:
    root = Path(amsd.__file__).parent
    found = set()
    for file in root.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import) and any(name.name.startswith("huggingface_hub") for name in node.names):
                found.add(str(file.relative_to(root)))
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("huggingface_hub"):
                names = {name.name for name in node.names} | set((node.module or "").split(".")[1:])
                if names & ACCESS:
                    found.add(str(file.relative_to(root)))
    assert found == {"hub.py"}
