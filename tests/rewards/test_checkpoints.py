"""Finding, checking and loading of weights; every failure at once and with what to do."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from amsd.errors import UsageError
from amsd.hub import Repository, parse_file
from amsd.rewards.checkpoints import fill, find_file, find_folder, load_tensors
from amsd.rewards.networks import fingerprint, freeze

WHAT = "reward 'x', option checkpoint"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")


def cached(tmp_path: Path, repository: str, name: str, content: bytes = b"x") -> Path:
    """Put a file into an (empty) cache, laid out as the hub's client does."""
    commit = "0" * 40
    root = tmp_path / "cache" / f"models--{repository.replace('/', '--')}"
    file = root / "snapshots" / commit / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs" / "main").write_text(commit)
    return file


def test_hub_files_are_parsed() -> None:
    assert parse_file("hub:a/b/c.pt") == (Repository("a/b"), "c.pt")
    assert parse_file("hub:a/b/sub/c.pt@v1") == (Repository("a/b", "v1"), "sub/c.pt")
    for wrong in ("hub:a/b", "hub:a//c.pt", "hub:c.pt"):
        with pytest.raises(UsageError, match="OWNER/REPOSITORY/FILE"):
            parse_file(wrong)


def test_a_local_file_is_found_and_its_hash_checked(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(b"weights")
    right = hashlib.sha256(b"weights").hexdigest()
    assert find_file(str(path), WHAT) == path
    assert find_file(str(path), WHAT, right.upper()) == path
    with pytest.raises(UsageError, match=f"its sha256 is {right}, not 00"):
        find_file(str(path), WHAT, "00")


def test_a_missing_local_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"option checkpoint = .*no such file.*hub:OWNER"):
        find_file(str(tmp_path / "none.pt"), WHAT)


@pytest.mark.usefixtures("no_network")
def test_without_network_a_file_of_the_cache_is_used(tmp_path: Path) -> None:
    file = cached(tmp_path, "owner/model", "weights.pt")
    assert find_file("hub:owner/model/weights.pt", WHAT) == file


@pytest.mark.usefixtures("no_network")
def test_without_network_a_missing_file_is_reported_at_once() -> None:
    with pytest.raises(UsageError, match=r"hub cannot be reached.*hf download owner/model weights\.pt.*local path"):
        find_file("hub:owner/model/weights.pt", WHAT)


@pytest.mark.usefixtures("no_network")
def test_offline_mode_is_respected_without_any_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("amsd.hub.unreachable", lambda address: pytest.fail("a request was made"))
    with pytest.raises(UsageError, match="HF_HUB_OFFLINE is set"):
        find_file("hub:owner/model/weights.pt", WHAT)


@pytest.mark.usefixtures("no_network")
def test_a_folder_of_the_cache_needs_one_file_of_each_group(tmp_path: Path) -> None:
    groups = [("config.json",), ("model.safetensors", "pytorch_model.bin")]
    cached(tmp_path, "owner/model", "config.json")
    with pytest.raises(UsageError, match=r"owner/model/model\.safetensors is not in the local cache"):
        find_folder("owner/model", WHAT, groups)
    file = cached(tmp_path, "owner/model", "pytorch_model.bin")
    assert find_folder("owner/model", WHAT, groups, optional=("extra.json",)) == file.parent


def test_a_local_folder_is_checked_for_its_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no a or b"):
        find_folder(str(tmp_path), WHAT, [("a", "b")])
    (tmp_path / "b").touch()
    assert find_folder(str(tmp_path), WHAT, [("a", "b")]) == tmp_path


@pytest.mark.parametrize("name", ["/no/such/folder", "./none", "one", "a/b/c"])
def test_a_missing_local_folder_is_named(name: str) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        find_folder(name, WHAT, [("a",)])


@pytest.mark.usefixtures("no_network")
def test_an_impossible_repository_name_is_refused() -> None:
    with pytest.raises(UsageError, match="option checkpoint is neither a folder nor a hub id"):
        find_folder("white space/model", WHAT, [("a",)])


def test_tensors_come_from_safetensors_and_torch_files(tmp_path: Path) -> None:
    state = {"a": torch.arange(3.0)}
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pt")
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "nested.pt")
    for name in ("w.safetensors", "w.pt", "nested.pt"):
        assert torch.equal(load_tensors(tmp_path / name, WHAT)["a"], state["a"])


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code from a checkpoint was run",)


def test_code_in_a_checkpoint_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"a": Payload()}, tmp_path / "evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Payload(), protocol=2))
    for name in ("evil.pt", "plain.pt"):
        with pytest.raises(UsageError, match="without running code"):
            load_tensors(tmp_path / name, WHAT)
    assert "code from a checkpoint" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"state_dict": [1]}])
def test_other_contents_are_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(UsageError, match="does not hold a dictionary of tensors"):
        load_tensors(tmp_path / "other.pt", WHAT)


@pytest.mark.parametrize("name", ["broken.pt", "broken.safetensors"])
def test_damaged_files_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x00\x01\x02")
    with pytest.raises(UsageError, match="cannot be read as a checkpoint"):
        load_tensors(tmp_path / name, WHAT)


def test_every_key_is_accounted_for() -> None:
    layer = nn.Linear(2, 1)
    state = {"weight": torch.ones(1, 2), "bias": torch.zeros(1)}
    fill(layer, state, WHAT)
    assert torch.equal(layer.weight, state["weight"])
    with pytest.raises(UsageError, match="1 missing: bias; 1 left over: other"):
        fill(layer, {"weight": state["weight"], "other": state["bias"]}, WHAT)
    with pytest.raises(UsageError, match="1 of another shape: weight"):
        fill(layer, {"weight": torch.ones(2, 2), "bias": state["bias"]}, WHAT)


def test_half_precision_checkpoints_become_float32() -> None:
    layer = nn.Linear(2, 1)
    fill(layer, {"weight": torch.ones(1, 2).half(), "bias": torch.zeros(1).half()}, WHAT)
    freeze(layer)
    assert layer.weight.dtype == torch.float32
    assert not layer.weight.requires_grad
    assert not layer.training


def test_the_fingerprint_sees_weights_names_and_texts() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(2, 1)
    first = fingerprint(layer)
    assert first == fingerprint(layer)
    assert len(first) == 12
    others = {fingerprint(layer, "text"), fingerprint(nn.Sequential(layer)), first}
    layer.bias.data += 1e-6
    others.add(fingerprint(layer))
    assert len(others) == 4
