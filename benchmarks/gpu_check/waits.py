"""Where the host waits for the card in one collection, and which kernels the card spends its time on."""

from __future__ import annotations

import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import workbench
from torch.profiler import ProfilerActivity, profile

from gpu_check.record import Check
from gpu_check.steps import CASES


def waits(check: Check) -> None:
    """Two trajectories, collected once to warm up, once for the waits, once for the profile."""
    case = CASES[0].cut(inference_steps=6 if check.options.tiny else 10)
    pipeline = workbench.random_pipeline(check.options.tiny, check.device)
    problem, accelerator = workbench.set_up(case.recipe(), pipeline, check.device)

    def run() -> None:
        workbench.collect_once(problem, accelerator, case.batch)
        check.sync()

    run()
    found = _host_waits(run, check.cuda)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if check.cuda else [])]
    with profile(activities=activities) as profiled:
        run()
    check.say(
        "syncs", steps=case.inference_steps, host_waits=sum(found.values()), where=dict(found.most_common(12)),
        **_kernels(profiled.key_averages()),
    )  # fmt: skip


def _host_waits(run: Callable[[], None], cuda: bool) -> Counter[str]:
    """The warnings of torch's synchronization debug mode, counted by the two nearest lines of amsd."""
    found: Counter[str] = Counter()

    def note(message: Any, *_: Any, **__: Any) -> None:
        if "synchroniz" not in str(message):
            return
        frames = [frame for frame in traceback.extract_stack() if "/amsd/" in frame.filename]
        nearest = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames[-2:])]
        found[" < ".join(nearest)] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note  # restored by catch_warnings
        if cuda:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            if cuda:
                torch.cuda.set_sync_debug_mode("default")
    return found


def _kernels(events: Any) -> dict[str, Any]:
    def count(*names: str) -> int:
        return sum(event.count for event in events if any(name in event.key for name in names))

    def milliseconds(event: Any) -> float:
        return getattr(event, "self_device_time_total", 0) / 1e3

    longest = sorted(events, key=milliseconds, reverse=True)[:14]
    return {
        "kernel_launches": count("LaunchKernel", "cuLaunch"), "casts_and_copies": count("aten::_to_copy"),
        "memcpy_calls": count("cudaMemcpy"), "top_kernels": {e.key[:60]: round(milliseconds(e), 2) for e in longest},
        "casts_ms": round(sum(milliseconds(e) for e in events if "copy" in e.key.lower()), 2),
        "device_ms": round(sum(map(milliseconds, events)), 1),
    }  # fmt: skip
