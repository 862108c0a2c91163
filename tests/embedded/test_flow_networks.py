"""The flow model's parts: what it sees in training is what diffusers' pipeline gives it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import JointAttnProcessor2_0

from embedded.flow_networks import (
    TEXT_LENGTH,
    CountedPadding,
    assemble_flow,
    build_flow_tokenizer,
    build_networks,
    draw_counts,
    encode,
    load_vae,
)
from embedded.networks import tokenize

CAPTIONS = ["a small red circle", "two magenta triangles", ""]


@pytest.fixture(scope="module")
def networks() -> dict[str, Any]:
    torch.manual_seed(0)
    return build_networks()


def test_context_and_pooled_are_those_of_the_pipeline(networks: dict[str, Any]) -> None:
    pipeline = assemble_flow(networks, load_vae(), shift=3.0)
    with torch.no_grad():
        expected, _, pooled, _ = pipeline.encode_prompt(
            CAPTIONS, None, None, do_classifier_free_guidance=False, max_sequence_length=0
        )
        found = encode(networks, tokenize(build_flow_tokenizer(), CAPTIONS))
    assert torch.equal(found[0], expected)
    assert torch.equal(found[1], pooled)
    assert max(len(build_flow_tokenizer()(caption).input_ids) for caption in CAPTIONS) <= TEXT_LENGTH


@pytest.mark.parametrize("count", [0, 1, 256])
def test_one_counted_token_stands_for_the_zero_tokens_of_diffusers(networks: dict[str, Any], count: int) -> None:
    transformer = networks["transformer"]
    generator = torch.Generator().manual_seed(1)
    latents, pooled = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 96, generator=generator)
    context, times = torch.randn(2, TEXT_LENGTH, 96, generator=generator), torch.tensor([700.0, 30.0])

    def velocity(zeros: int) -> torch.Tensor:
        padded = torch.cat([context, context.new_zeros(2, zeros, 96)], dim=1)
        with torch.no_grad():
            return transformer(latents, padded, pooled, times).sample

    transformer.set_attn_processor(JointAttnProcessor2_0())
    expected = velocity(count)
    padding = CountedPadding()
    padding.set_counts(torch.tensor([count, count]), 16 + TEXT_LENGTH + 1)
    transformer.set_attn_processor(padding)
    found = velocity(1)
    transformer.set_attn_processor(JointAttnProcessor2_0())
    assert torch.allclose(found, expected, atol=1e-5)
    if count != 1:
        assert not torch.allclose(velocity(1), expected, atol=1e-5)


def test_counts_cover_none_and_the_default_of_diffusers() -> None:
    counts = draw_counts(3000, torch.Generator().manual_seed(0))
    assert float((counts == 0).float().mean()) == pytest.approx(1 / 3, abs=0.03)
    assert float((counts == 256).float().mean()) == pytest.approx(1 / 3, abs=0.03)
    assert int(counts.max()) <= 512
    assert ((counts > 0) & (counts < 256)).any()
