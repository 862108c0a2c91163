"""Whether trials fit into their share of a GPU, told before a sweep starts."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

from amsd.errors import UsageError
from amsd.sweep.plan import SweepPlan

_GIB = 2**30


def memory_lines(plan: SweepPlan) -> Iterator[str]:
    """What a trial of the base recipe needs of a GPU and, where GPUs are visible, whether its share holds that."""
    needed = needed_bytes(plan)
    if needed is None:
        return
    yield (
        f"Memory: {needed / _GIB:.1f} GiB per process for weights, gradients and optimizer of the base recipe; "
        "activations come on top."
    )
    sizes = gpu_bytes()
    share = plan.sweep.execution.gpus
    if not sizes or share == 0:
        return
    part = min(1.0, share if share is not None else 1.0)
    room = part * min(sizes)
    if needed > room:
        way = "Set execution.gpus = 1." if part < 1 and needed <= min(sizes) else (
            "Use a smaller parameterization or precision (amsd train RECIPE --dry-run shows what takes it)."
        )  # fmt: skip
        yield f"That does not fit: a trial's share of the smallest GPU here is {room / _GIB:.1f} GiB. {way}"


def needed_bytes(plan: SweepPlan) -> float | None:
    """Bytes on each device by the base recipe's own plan; None if the model is neither known nor at hand."""
    from amsd.experiment.plan import make_plan

    try:
        return make_plan(plan.recipe, plan.sweep.execution.processes).memory_bytes
    except UsageError:
        return None


def gpu_bytes() -> list[int]:
    """Memory of each GPU of this machine, as its driver says; torch is not imported for it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    return [int(mebibytes) * 2**20 for mebibytes in listed if mebibytes.isdecimal()]
