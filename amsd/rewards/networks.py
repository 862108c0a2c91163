"""Frozen networks of rewards: how they are held, identified and computed with."""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager

import torch
from torch import nn


def freeze(module: nn.Module) -> None:
    """Evaluation mode, float32, no gradient for weights."""
    module.float().eval().requires_grad_(False)


def fingerprint(module: nn.Module, *also: str) -> str:
    """Twelve hexadecimal digits that change with any weight, name or shape in `module`, or with a string in `also`."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        if tensor.numel():
            digest.update(memoryview(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()))
    for text in also:
        digest.update(text.encode())
    return digest.hexdigest()[:12]


def full_precision(device: torch.device) -> AbstractContextManager[None]:
    """Float32 inside, whatever mixed precision the training loop has switched on around it."""
    return torch.autocast(device_type=device.type, enabled=False)


def device_of(module: nn.Module) -> torch.device:
    """Where the weights lie."""
    return next(module.parameters()).device
