"""Other packages' empty remarks are dropped, and nothing else of what they say."""

from __future__ import annotations

import logging

import pytest
import torch

from amsd.quiet import REMARKS, drop_remarks
from amsd.shapes import pipeline_path


@pytest.mark.parametrize(("name", "words"), REMARKS.items())
def test_the_remark_is_dropped_and_its_neighbors_pass(
    name: str, words: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop_remarks()
    logger = logging.getLogger(name)
    monkeypatch.setattr(logger, "propagate", True)
    logger.addHandler(caplog.handler)
    logger.warning("There are 3 modules; %s", words)
    logger.warning("something else")
    logger.removeHandler(caplog.handler)
    assert {record.getMessage() for record in caplog.records} == {"something else"}


def test_a_cast_of_the_decoder_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """diffusers itself remarks on this cast; should it stop, the filter can go."""
    from diffusers import AutoencoderKL

    AutoencoderKL.from_pretrained(pipeline_path() / "vae").to(torch.bfloat16)
    assert "float32" not in capfd.readouterr().err
