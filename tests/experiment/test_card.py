"""The README.md of an export, and its way to the hub through a stand-in of the hub's API."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from amsd.errors import RunError, UsageError
from amsd.evaluation.result import EvaluationResult
from amsd.evaluation.statistics import summarize
from amsd.experiment.card import write_card
from amsd.hub import push
from amsd.recipe import dump_toml, load_recipe


class Hub(ThreadingHTTPServer):
    """Enough of the hub for one commit of small files; remembers what was asked and what was uploaded."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Requests)
        self.allowed = True
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.complaints: list[str] = []


class _Requests(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self.server.allowed or self.headers.get("Authorization") != "Bearer hf_test":
            self._answer({"error": "forbidden"}, 403)
        elif self.path == "/api/validate-yaml":
            found = [{"message": message} for message in self.server.complaints]
            self._answer({"errors": found, "warnings": []}, 400 if found else 200)
        elif self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self._answer({"url": f"{self._address}/someone/model", "name": "someone/model"})
        elif "/preupload/" in self.path:
            names = [entry["path"] for entry in json.loads(body)["files"]]
            self._answer({"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            address = f"{self._address}/someone/model/commit/{'0' * 40}"
            self._answer({"commitUrl": address, "commitOid": "0" * 40, "commitMessage": "m", "success": True})
        else:
            self._answer({})

    @property
    def _address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def do_GET(self) -> None:
        self._answer({"id": "someone/model", "sha": "0" * 40, "siblings": []})

    def _answer(self, content: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """A folder with the card of a checkpoint that has one evaluation and one grid."""
    recipe = load_recipe("sd15-am", ["model.parameterization=lora"])
    checkpoint, folder = tmp_path / "run" / "checkpoints" / "step-000200", tmp_path / "export"
    setting = recipe.evaluation_settings[0]
    metrics = {"imagereward": summarize("1", [0.7, 0.8, 0.9], [0.1, 0.2, 0.2])}
    settings = {**setting.model_dump(), "samples_per_prompt": 10}
    EvaluationResult(setting.name, settings, "i", ("a", "b", "c"), metrics).save(checkpoint / "evaluation")
    (checkpoint / "samples" / setting.name).mkdir(parents=True)
    for name in ("grid.png", "p000-s0.png"):
        Image.new("RGB", (4, 4)).save(checkpoint / "samples" / setting.name / name)
    folder.mkdir()
    write_card(folder, recipe, checkpoint, ["Diffusers' DDIM ends without noise."])
    return folder


def test_the_card_says_what_it_is_what_it_scores_and_how_to_load_it(export: Path) -> None:
    text = (export / "README.md").read_text(encoding="utf-8")
    assert "# stable-diffusion-v1-5 fine-tuned on imagereward" in text
    assert "| imagereward | 0.800 ± 0.058 | +0.633 ± 0.033 |" in text
    assert "3 prompts x 10 samples" in text
    assert "DiffusionPipeline.from_pretrained" in text
    assert "num_inference_steps=50, guidance_scale=7.5" in text
    assert "ends without noise" in text
    assert "Reward `imagereward`: Apache-2.0." in text
    assert dump_toml(load_recipe("sd15-am", ["model.parameterization=lora"])).removesuffix("\n[code]\n") in text
    assert "![Samples: a prompt per row](samples.png)" in text
    assert Image.open(export / "samples.png").size == (4, 4)


def test_the_metadata_is_what_the_hub_reads(export: Path) -> None:
    card = ModelCard.load(export / "README.md")
    assert card.data.base_model == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert card.data.to_dict()["base_model_relation"] == "adapter"
    assert card.data.license == "creativeml-openrail-m"
    assert {"lora", "text-to-image", "adjoint-matching"} <= set(card.data.tags)
    assert (card.data.library_name, card.data.pipeline_tag) == ("diffusers", "text-to-image")
    (result,) = card.data.eval_results  # read back by the hub's own parser of the model index
    assert (result.metric_type, result.metric_value) == ("imagereward", pytest.approx(0.8))
    assert result.metric_args["standard_error"] == pytest.approx(0.0577, abs=1e-3)
    assert result.metric_args["difference_to_base"] == pytest.approx(0.6333, abs=1e-3)
    assert card.data.to_dict()["widget"] == [{"text": "a", "output": {"url": "images/p000-s0.png"}}]
    assert (export / "images" / "p000-s0.png").is_file()


def test_the_hub_s_own_check_is_asked_before_an_upload(export: Path, hub: Hub) -> None:
    hub.complaints = ["license is not allowed"]
    with pytest.raises(RunError, match="license is not allowed"):
        push(export, "someone/model")
    assert not hub.files


def test_the_card_of_an_own_reward_and_of_a_model_from_a_file_reads_well(tmp_path: Path) -> None:
    settings = [
        'reward=[{name="python:my_rewards.py:sharpness"}]', "model.pretrained=models/dreamshaper.safetensors",
        'evaluation.metrics=["pyiqa:musiq"]',
    ]  # fmt: skip
    write_card(tmp_path, load_recipe("sd15-am", settings), tmp_path / "run" / "checkpoints" / "step-000010")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "# dreamshaper fine-tuned on sharpness" in text
    assert "Reward `sharpness`: the author's own code (`my_rewards.py:sharpness`)" in text
    assert "Metric `pyiqa:musiq`: pyiqa is PolyForm-Noncommercial: no commercial use" in text
    data = ModelCard.load(tmp_path / "README.md").data.to_dict()
    assert (data["license"], data["license_name"]) == ("other", "license-of-the-base-model")
    assert "base_model" not in data


def test_an_export_is_uploaded_whole(export: Path, hub: Hub) -> None:
    assert "someone/model" in push(export, "someone/model")
    assert hub.created[0]["name"] == "model"
    assert hub.files == {
        str(path.relative_to(export)): path.read_bytes() for path in export.rglob("*") if path.is_file()
    }


def test_a_refusal_says_how_to_log_in(export: Path, hub: Hub) -> None:
    hub.allowed = False
    with pytest.raises(RunError, match="hf auth login"):
        push(export, "someone/model")


def test_a_wrong_name_and_offline_mode_are_usage_errors(export: Path, hub: Hub, monkeypatch: Any) -> None:
    with pytest.raises(UsageError, match="OWNER/REPOSITORY"):
        push(export, "not a name/at all")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UsageError, match="HF_HUB_OFFLINE"):
        push(export, "someone/model")
    assert not hub.files


def test_the_card_names_no_place_on_the_author_s_machine(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle\n", encoding="utf-8")
    (tmp_path / "mine.py").write_text(
        "def score(images, prompts):\n    return images.mean((1, 2, 3))\n", encoding="utf-8"
    )
    settings = [f"prompts.train={tmp_path / 'prompts.txt'}", f'reward=[{{name="python:{tmp_path / "mine.py"}:score"}}]']
    recipe = load_recipe("shapes", settings).model_copy(update={"origin": str(tmp_path / "run")})
    checkpoint = tmp_path / "run" / "checkpoints" / "step-000001"
    checkpoint.mkdir(parents=True)
    (tmp_path / "export").mkdir()
    write_card(tmp_path / "export", recipe, checkpoint)
    card = (tmp_path / "export" / "README.md").read_text(encoding="utf-8")
    assert str(tmp_path) not in card
    assert 'train = "prompts.txt"' in card
    assert 'name = "python:mine.py:score"' in card
