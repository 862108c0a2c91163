"""Embedding variance against the reference, the double sum and geometry."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from amsd.errors import UsageError
from amsd.evaluation.diversity import embedding_variance

GOLDEN = Path(__file__).parents[1] / "golden" / "g6_evaluation.safetensors"


def test_reference_numbers() -> None:
    golden = load_file(GOLDEN)
    variance = embedding_variance(golden["in/embeddings"])
    expected = golden["dreamsim/variance_f64"].double()
    assert (variance - expected).abs().max() <= 1e-10 * expected.abs().max()


def test_double_sum_of_the_definition() -> None:
    embeddings = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    unit = embeddings / embeddings.norm(dim=-1, keepdim=True)
    expected = [sum((a - b).square().sum() for a in e for b in e) / (2 * 5 * 4) for e in unit]
    torch.testing.assert_close(embedding_variance(embeddings), torch.stack(expected))


def test_orthogonal_samples_have_variance_one_and_equal_ones_none() -> None:
    orthogonal = torch.eye(4)[None] * torch.tensor([1.0, 5.0, 0.1, 2.0]).view(1, 4, 1)
    assert embedding_variance(orthogonal).tolist() == pytest.approx([1.0])
    assert embedding_variance(torch.ones(1, 4, 3)).tolist() == pytest.approx([0.0])


def test_one_sample_is_an_error_and_not_a_nan() -> None:
    with pytest.raises(UsageError, match="undefined for 1 sample per prompt"):
        embedding_variance(torch.ones(2, 1, 3))
