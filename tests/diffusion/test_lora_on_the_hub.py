"""LoRA files of the hub, from a cache laid out as its client does: found by repository, or named; nothing is asked."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from amsd.diffusion.lora_input import find_lora
from amsd.diffusion.parameterizations import build_policy
from amsd.diffusion.start_weights import require_start, start_from
from amsd.errors import UsageError
from amsd.experiment.models import load_model, require_model
from amsd.recipe import Model
from tests import pipelines
from tests.diffusion.test_start_weights import made
from tests.rewards.test_checkpoints import cached

NAME = "someone/style-lora"
FILE = "pytorch_lora_weights.safetensors"


@pytest.fixture
def lora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return made(tmp_path / "made")


@pytest.fixture
def base(tmp_path: Path) -> Model:
    pipelines.stable_diffusion().save_pretrained(tmp_path / "model")
    return Model(pretrained=str(tmp_path / "model"))


@pytest.mark.parametrize(("name", "target"), [
    (FILE, NAME), ("style-v2.safetensors", NAME), ("style-v2.safetensors", f"hub:{NAME}/style-v2.safetensors"),
])  # fmt: skip
def test_a_repository_is_a_model_and_a_start(name: str, target: str, lora: Path, base: Model, tmp_path: Path) -> None:
    file = cached(tmp_path, NAME, name, lora.read_bytes())
    assert find_lora(target, "x") == file
    require_model(target, base)
    local, remote = (load_model(source, base, torch.device("cpu")) for source in (str(lora), target))
    assert local.weights == remote.weights
    started = base.model_copy(update={"start": target})
    require_start(started)
    policy = build_policy(local.family.__class__(pipelines.stable_diffusion()), started)
    start_from(policy, started)
    trained, merged = policy.trained_network.state_dict(), local.family.denoiser.state_dict()
    assert all(torch.allclose(trained[key], value, atol=1e-6) for key, value in merged.items())


def test_of_several_files_one_has_to_be_named(lora: Path, base: Model, tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        cached(tmp_path, NAME, name, lora.read_bytes())
    with pytest.raises(UsageError, match=rf"holds 2 files: a\.safetensors, b.* hub:{NAME}/a\.safetensors"):
        require_model(NAME, base)
    assert find_lora(f"hub:{NAME}/b.safetensors", "x") is not None


def test_what_is_not_there_is_said_without_a_wait(lora: Path, base: Model, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"HF_HUB_OFFLINE is set.*hf download"):
        require_model(NAME, base)
    with pytest.raises(UsageError, match=r"model\.start = .*HF_HUB_OFFLINE is set"):
        require_start(base.model_copy(update={"start": f"hub:{NAME}/{FILE}"}))
    pipeline = cached(tmp_path, NAME, "model_index.json").parent
    shutil.copytree(Path(base.pretrained), pipeline, dirs_exist_ok=True)
    assert find_lora(NAME, "x") is None  # a pipeline, with whatever lies beside it
