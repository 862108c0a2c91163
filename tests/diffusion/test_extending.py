"""The family of docs/extending.md, as it stands there, on a tiny model: agreement, training, checkpoint, sampling."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel, FlowMatchEulerDiscreteScheduler
from transformers import UMT5Config, UMT5EncoderModel

from amsd.diffusion import families
from amsd.diffusion.agreement import require_agreement
from amsd.diffusion.blueprint import blueprint
from amsd.diffusion.guidance import Conditioning, NetworkPredictor
from amsd.diffusion.loading import load_family
from amsd.diffusion.parameterizations import build_policy
from amsd.diffusion.rollout import rollout
from amsd.recipe import Model, Schedule
from tests import pipelines

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


@pytest.fixture
def documented(monkeypatch: pytest.MonkeyPatch) -> None:
    text = PAGE.read_text(encoding="utf-8").partition("## A model family")[2]
    (code,) = re.findall(r"```python\n(.*?)```", text.partition("\n## ")[0], flags=re.DOTALL)
    module = ModuleType("my_families")
    exec(compile(code, str(PAGE), "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, "my_families", module)
    monkeypatch.setitem(families.FAMILIES, "AuraFlowPipeline", "my_families:AuraFlow")


def tiny() -> AuraFlowPipeline:
    torch.manual_seed(0)
    tokenizer = pipelines.t5_tokenizer()
    config = UMT5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    transformer = AuraFlowTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_mmdit_layers=1, num_single_dit_layers=1,
        attention_head_dim=8, num_attention_heads=2, joint_attention_dim=32, caption_projection_dim=16,
        pos_embed_max_size=36,
    ).eval()  # fmt: skip
    pipeline = AuraFlowPipeline(
        tokenizer=tokenizer, text_encoder=UMT5EncoderModel(config).eval(), vae=pipelines.stable_diffusion().vae,
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.usefixtures("documented")
@pytest.mark.parametrize("parameterization", ["full", "lora"])
def test_the_documented_family_works(parameterization: Any, tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path / "model")
    model = Model(pretrained=str(tmp_path / "model"), parameterization=parameterization)
    family = load_family(model)
    require_agreement(family)
    assert blueprint(model).parameters == sum(value.numel() for value in family.denoiser.parameters())
    policy = build_policy(family, model)
    given = Conditioning(family.encode(["a red circle"]), family.encode_empty(1))
    for value in policy.trainable.values():
        value.data.add_(0.01)
    policy.save(tmp_path)
    policy.load(tmp_path)
    schedule = Schedule(num_inference_steps=3)
    replay, random = (torch.Generator().manual_seed(1) for _ in range(2))
    draws = [torch.randn(1, *family.latent_shape, generator=replay) for _ in range(4)]
    steps = family.steps(schedule)
    with policy.sampling() as pipeline:
        predict = NetworkPredictor(family.network(family.denoiser), steps, given, 2.0)
        expected = rollout(predict, steps, torch.stack(draws, 1)).terminal
        pipeline.scheduler = family.training_sampler(schedule)
        found = family.draw(
            family.prompt_arguments(given.prompt, given.negative), [random], eta=1.0, guidance_scale=2.0,
            num_inference_steps=3, output_type="latent",
            latents=torch.randn(1, *family.latent_shape, generator=random),
        )  # fmt: skip
    assert torch.allclose(found, expected, atol=2e-5)
