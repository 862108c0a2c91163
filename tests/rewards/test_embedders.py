"""Embeddings: one row per image, no image in another's row, versions that tell weights apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from amsd.errors import UsageError
from amsd.rewards.embedders import CLIPEmbedder, DreamSimEmbedder, PixelEmbedder
from amsd.rewards.protocol import Embedder
from tests.rewards import tiny


class EmbedderContract:
    @pytest.fixture
    def images(self) -> torch.Tensor:
        return torch.rand(3, 3, 48, 40, generator=torch.Generator().manual_seed(0))

    def test_one_float32_row_per_image(self, embedder: Embedder, images: torch.Tensor) -> None:
        embeddings = embedder(images)
        assert embeddings.ndim == 2
        assert len(embeddings) == len(images)
        assert embeddings.dtype == torch.float32
        assert embedder(images.bfloat16()).dtype == torch.float32
        assert not embeddings.requires_grad

    def test_batch_equals_single(self, embedder: Embedder, images: torch.Tensor) -> None:
        alone = torch.cat([embedder(images[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(embedder(images), alone, atol=1e-5, rtol=1e-5)

    def test_different_images_differ(self, embedder: Embedder, images: torch.Tensor) -> None:
        assert torch.pdist(embedder(images)).min() > 1e-3

    def test_gradient_reaches_the_images(self, embedder: Embedder, images: torch.Tensor) -> None:
        variable = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(embedder(variable)[0].square().sum() + embedder(variable)[0].sum(), variable)
        assert gradient[0].abs().max() > 0
        assert gradient[1:].abs().max() == 0

    def test_name_version_and_device(self, embedder: Embedder) -> None:
        assert embedder.name
        assert embedder.version
        assert embedder.to("cpu") is embedder


class TestPixels(EmbedderContract):
    @pytest.fixture
    def embedder(self) -> Embedder:
        return PixelEmbedder(8)

    def test_it_is_the_mean_of_blocks(self) -> None:
        image = torch.arange(16.0).view(1, 1, 4, 4).expand(1, 3, 4, 4)
        assert PixelEmbedder(2)(image).tolist() == [[2.5, 4.5, 10.5, 12.5] * 3]

    def test_small_images_stay_as_they_are(self) -> None:
        image = torch.rand(1, 3, 4, 4)
        assert torch.equal(PixelEmbedder(32)(image), image.flatten(1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.clip_folder(tmp_path_factory.mktemp("clip"))


class TestCLIP(EmbedderContract):
    @pytest.fixture
    def embedder(self, folder: Path) -> Embedder:
        return CLIPEmbedder(str(folder))

    def test_rows_are_unit_vectors(self, folder: Path) -> None:
        norms = CLIPEmbedder(str(folder))(torch.rand(2, 3, 32, 32)).norm(dim=1)
        torch.testing.assert_close(norms, torch.ones(2))


def dreamsim_folder(folder: Path) -> Path:
    """Release files of the variant clip_vitb32 with random weights: the sizes are fixed in the package."""
    import json

    from dreamsim.config import dreamsim_args
    from dreamsim.feature_extraction.vision_transformer import vit_base
    from dreamsim.model import PerceptualModel
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    network = vit_base(patch_size=32)
    network.pos_drop = torch.nn.LayerNorm(network.embed_dim)
    state = network.state_dict() | {"proj": torch.randn(768, 512) / 28}
    torch.save({"state_dict": state}, folder / "clip_vitb32_pretrain.pth.tar")
    arguments = dreamsim_args["model_config"]["clip_vitb32"]
    model = PerceptualModel(**arguments, device="cpu", load_dir=str(folder), normalize_embeds=True)
    settings = {"r": 4, "lora_alpha": 4, "lora_dropout": 0.1, "bias": "none", "target_modules": ["qkv"]}
    get_peft_model(model, LoraConfig(**settings)).save_pretrained(folder / "clip_vitb32_single_lora")
    config = json.loads((folder / "clip_vitb32_single_lora" / "adapter_config.json").read_text())
    assert {key: config[key] for key in ("r", "bias")} == {"r": 4, "bias": "none"}
    return folder


@pytest.fixture(scope="module")
def dreamsim(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    pytest.importorskip("dreamsim")
    return DreamSimEmbedder(str(dreamsim_folder(tmp_path_factory.mktemp("dreamsim"))), type="clip_vitb32")


@pytest.mark.slow
class TestDreamSim(EmbedderContract):
    @pytest.fixture
    def embedder(self, dreamsim: Embedder) -> Embedder:
        return dreamsim

    def test_rows_are_centered_unit_vectors(self, embedder: Embedder, images: torch.Tensor) -> None:
        rows = embedder(images)
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))
        torch.testing.assert_close(rows.mean(1), torch.zeros(3), atol=1e-5, rtol=0)

    def test_an_unknown_variant_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="expected one of ensemble"):
            DreamSimEmbedder(str(tmp_path), type="clip_vitb99")

    def test_missing_weights_without_network_are_explained(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def unreachable(*args: object, **kwargs: object) -> None:
            raise OSError("Name or service not known")

        monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
        with pytest.raises(UsageError, match=r"cannot be downloaded.*'clip' or 'pixels'"):
            DreamSimEmbedder(str(tmp_path / "empty"), type="clip_vitb32")
