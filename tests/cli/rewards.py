"""Rewards that fail, for recipes of tests (`python:tests.cli.rewards:NAME`)."""

from __future__ import annotations

import os

import torch


def fails_on_process_1(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """The brightness, but the second process has a broken card."""
    if os.environ.get("RANK") == "1":
        raise ValueError("this card is broken")
    return images.mean((1, 2, 3))


def fails(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """Nothing."""
    raise ValueError("this reward is broken")


def fails_at_step_5(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """The brightness, for the two images of the rehearsal and the four of each of four steps."""
    global _calls
    _calls += len(images) * images.requires_grad
    if _calls > 2 + 4 * 4:
        raise ValueError("this reward is worn out")
    return images.mean((1, 2, 3))


_calls = 0


def ranks(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """Rank of each image's brightness among the samples of one prompt."""
    assert len(set(prompts)) == 1, prompts
    assert len(images) == 2, len(images)
    return images.mean((1, 2, 3)).argsort().argsort()
