"""What the machine is, and the limits of its card."""

from __future__ import annotations

import importlib.metadata
import os
import sys
import time

import torch

from gpu_check.record import Check

LIBRARIES = (
    "torch", "torchvision", "diffusers", "transformers", "accelerate", "peft", "pydantic", "huggingface_hub",
    "safetensors", "numpy", "triton",
)  # fmt: skip


def environment(check: Check, import_torch: float) -> None:
    """Versions, card, and what imports cost."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    properties = torch.cuda.get_device_properties(0) if check.cuda else None
    check.say(
        "environment", python=sys.version.split()[0], cpus=os.cpu_count(), versions=versions,
        import_torch_s=round(import_torch, 1), gpu=torch.cuda.get_device_name() if check.cuda else "cpu",
        memory_gib=round(properties.total_memory / 2**30, 1) if properties else None,
        cudnn=torch.backends.cudnn.version(),
    )  # fmt: skip
    start = time.perf_counter()
    import amsd.experiment.train  # noqa: F401

    check.say("environment", import_amsd_s=round(time.perf_counter() - start, 1))


def limits(check: Check) -> None:
    """Matrix products by precision, copies on the card, copies to it."""
    size = 8192 if check.cuda else 512

    def rate(dtype: torch.dtype, tf32: bool = False) -> float:
        torch.backends.cuda.matmul.allow_tf32 = tf32
        one, other = (torch.randn(size, size, device=check.device, dtype=dtype) for _ in range(2))
        return 2 * size**3 / check.seconds(lambda: one @ other, 3, 10) / 1e12

    check.limits |= {"bf16": rate(torch.bfloat16), "tf32": rate(torch.float32, True)}
    if check.cuda:
        check.limits["fp32"] = rate(torch.float32)
    source = torch.empty(2**29 if check.cuda else 2**22, device=check.device)
    target = torch.empty_like(source)
    copied = 2 * source.numel() * 4 / check.seconds(lambda: target.copy_(source), 3, 10) / 1e12
    host = torch.empty(2**26 if check.cuda else 2**20)
    found = {"pageable": _upload(check, host)}
    if check.cuda:
        found["pinned"] = _upload(check, host.pin_memory())
    check.say(
        "limits", matmul_tflops={name: round(value, 2) for name, value in check.limits.items()},
        copy_tb_s=round(copied, 3), h2d_gb_s=found,
    )  # fmt: skip


def _upload(check: Check, host: torch.Tensor) -> float:
    """GB/s from the host to the card; on a CPU, of a copy."""
    work = (lambda: host.to(check.device, non_blocking=True)) if check.cuda else host.clone
    return round(host.numel() * 4 / check.seconds(work, 1, 3) / 1e9, 1)
