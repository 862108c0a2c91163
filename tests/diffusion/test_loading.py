"""Where a pipeline comes from, and what is said at once where it cannot come from there."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from amsd.diffusion.families import decoding, family_for
from amsd.diffusion.loading import load_family, locate
from amsd.errors import UsageError
from amsd.recipe import Model
from tests import pipelines

ANSWERS = {
    "someone/missing": (401, "RepoNotFound"),
    "someone/gated": (403, "GatedRepo"),
    "someone/revised": (404, "RevisionNotFound"),
    "someone/broken": (500, ""),
}


class _Hub(BaseHTTPRequestHandler):
    """The hub's API as far as errors go: a status and its error code per repository."""

    def do_GET(self) -> None:
        name = "/".join(self.path.split("/")[3:5])
        status, code = ANSWERS[name]
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    _online(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    server.server_close()


def _online(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("name", "revision", "words"),
    [
        ("someone/missing", None, ("does not exist on the hub", "hf download someone/missing")),
        ("someone/gated", None, ("is gated", "hf auth login")),
        ("someone/revised", "v9", ("model.revision = 'v9'", "someone/revised")),
        ("someone/broken", None, ("cannot be reached", "embedded:shapes")),
    ],
)
def test_what_the_hub_refuses_is_said_with_the_way_out(name: str, revision: str | None, words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        locate(Model(pretrained=name, revision=revision))
    for word in words:
        assert word in str(caught.value)


def test_an_unreachable_hub_is_reported_without_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    _online(monkeypatch, "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(UsageError, match=r"not in the local cache and the hub cannot be reached .*hf download"):
        locate(Model(pretrained="someone/model"))
    assert time.monotonic() - start < 15  # transformers' own retries take 47


def test_offline_mode_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UsageError, match=r"HF_HUB_OFFLINE is set.*hf download someone/model"):
        locate(Model(pretrained="someone/model"))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("./nowhere", "no such folder"),
        ("a/b/c", "no such folder"),
        ("nowhere.safetensors", "no such file"),
        ("not a name", "neither a folder nor a hub id"),
        ("embedded:circles", "the embedded models are 'embedded:shapes' and 'embedded:shapes-flow'"),
    ],
)
def test_what_is_not_there_is_named(name: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        locate(Model(pretrained=name))


def test_a_folder_without_an_index_is_not_a_pipeline(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no model_index\.json"):
        locate(Model(pretrained=str(tmp_path)))


def test_a_file_that_is_no_checkpoint_is_refused_at_once(tmp_path: Path) -> None:
    damaged, other = tmp_path / "damaged.safetensors", tmp_path / "other.safetensors"
    damaged.write_bytes(b"<html>Sign in</html>")
    save_file({"something": torch.zeros(2)}, other)
    for file in (damaged, other):
        with pytest.raises(UsageError, match=r"cannot be read as a checkpoint"):
            load_family(Model(pretrained=str(file)))


def test_a_folder_is_loaded_in_float32_without_safety_checker(tmp_path: Path) -> None:
    original = pipelines.stable_diffusion()
    original.save_pretrained(tmp_path / "model")
    loaded = load_family(Model(pretrained=str(tmp_path / "model"))).pipeline
    assert loaded.safety_checker is None
    assert {parameter.dtype for parameter in loaded.unet.parameters()} == {torch.float32}
    weights = loaded.unet.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in original.unet.state_dict().items())


def test_a_variant_is_what_is_loaded(tmp_path: Path) -> None:
    halves = pipelines.stable_diffusion(1).to(torch.float16)
    halves.save_pretrained(tmp_path, variant="fp16")
    pipelines.stable_diffusion(0).save_pretrained(tmp_path)
    loaded = load_family(Model(pretrained=str(tmp_path), variant="fp16")).pipeline
    assert torch.equal(loaded.unet.conv_out.weight, halves.unet.conv_out.weight.float())
    plain = load_family(Model(pretrained=str(tmp_path))).pipeline
    assert not torch.equal(plain.unet.conv_out.weight, loaded.unet.conv_out.weight)
    with pytest.raises(UsageError, match="cannot be loaded"):
        load_family(Model(pretrained=str(tmp_path), variant="int4"))


@pytest.mark.parametrize("side", [8, 12, 20])
def test_tiling_is_a_choice_of_the_recipe(side: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = pipelines.stable_diffusion()
    original.unet.register_to_config(sample_size=side)
    original.vae.register_to_config(sample_size=2 * side)  # as released models have it: a tile is a whole image
    original.save_pretrained(tmp_path)
    latents = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(0))
    images, calls = {}, {False: 0, True: 0}
    for tiling in (False, True):
        family = load_family(Model(pretrained=str(tmp_path), vae_tiling=tiling))
        tiled = family.pipeline.vae.tiled_decode

        def counted(z: Any, tiling: bool = tiling, tiled: Any = tiled, **options: Any) -> Any:
            calls[tiling] += 1
            return tiled(z, **options)

        monkeypatch.setattr(family.pipeline.vae, "tiled_decode", counted)
        images[tiling] = family.decode(latents)
    assert calls == {False: 0, True: 1}
    assert images[True].shape == images[False].shape == (1, 3, 2 * side, 2 * side)
    difference = (images[True] - images[False]).abs()
    assert difference.max() > 0
    assert difference.mean() < 0.1


def test_decoding_in_slices_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    family = family_for(pipelines.stable_diffusion())
    latents = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    whole = family.decode(latents)
    sizes = []
    decode = family.pipeline.vae.decode
    monkeypatch.setattr(
        family.pipeline.vae, "decode", lambda z, **options: sizes.append(len(z)) or decode(z, **options)
    )
    monkeypatch.setattr(decoding, "DECODED_PIXELS", 2 * 16 * 16)
    assert torch.allclose(family.decode(latents), whole, atol=1e-5)
    assert sizes == [2, 2, 1]
