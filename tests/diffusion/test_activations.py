"""What a pass keeps for its way back, counted on shapes, against what PyTorch keeps in a real one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from amsd.diffusion.activations import kept_bytes
from amsd.diffusion.blueprint import blueprint
from amsd.diffusion.families.base import Family
from amsd.diffusion.loading import load_family
from amsd.recipe import Model
from tests import pipelines

MADE: dict[str, Callable[[], Any]] = {
    "sd": pipelines.stable_diffusion,
    "sd3": lambda: pipelines.stable_diffusion_3(t5=False),
    "flux": pipelines.flux,
}


def really_kept(family: Family) -> int:
    """Bytes that a real pass on the CPU keeps, without the weights."""
    denoiser = family.denoiser.requires_grad_(False)
    weights = {each.data_ptr() for each in (*denoiser.parameters(), *denoiser.buffers())}
    kept: dict[int, Any] = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return value

    x = torch.randn(1, *family.latent_shape, requires_grad=True)
    condition = family.encode(["a red circle"])
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        family.network(denoiser)(x, torch.tensor([500.0]), condition)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("name", MADE)
def test_what_is_counted_is_what_is_kept(name: str, tmp_path: Path) -> None:
    MADE[name]().save_pretrained(tmp_path)
    model = Model(pretrained=str(tmp_path), size=(16, 24))
    paper, family = blueprint(model), load_family(model)
    texts = family.encode(["a red circle"]).hidden_states.shape[1]
    assert paper.family.blank_condition("meta").hidden_states.shape[1] >= texts
    counted = kept_bytes(_with_texts(paper.family, texts), paper.family.denoiser, torch.float32)
    assert counted == pytest.approx(really_kept(family), rel=0.02)
    halved = kept_bytes(_with_texts(paper.family, texts), paper.family.denoiser, torch.bfloat16)
    assert 0.5 * counted < halved < 0.95 * counted


def _with_texts(family: Family, tokens: int) -> Family:
    """The embedded tokenizer has 16 tokens where CLIP's has 77."""
    blank = family.blank_condition
    family.blank_condition = (
        lambda device: blank(device).__class__(  # type: ignore[method-assign]
            blank(device).hidden_states[:, :tokens], blank(device).added
        )
    )
    return family
