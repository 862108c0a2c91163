"""The command line, and the order of the parts: what tells most comes first, what may not end comes last."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

_BEFORE = time.perf_counter()

IMPORT_TORCH = time.perf_counter() - _BEFORE

from gpu_check.record import START, Check, Options  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the check; exits 0 whatever it finds, for findings are in its lines."""
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__, prog="gpu.py")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu for the same code path without a card")
    parser.add_argument("--tiny", action="store_true", help="a tiny UNet in place of SD 1.5's, and few steps")
    parser.add_argument("--budget", type=float, default=520.0, help="seconds; parts that do not fit are skipped")
    parser.add_argument("--only", default="", help="comma-separated names of parts")
    parser.add_argument("--pytest-seconds", type=float, default=100.0, help="for the tests marked gpu; 0: none")
    parser.add_argument("--compile-child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--fsdp-child", action="store_true", help=argparse.SUPPRESS)
    found = parser.parse_args(arguments)
    only = tuple(name for name in found.only.split(",") if name)
    out = Path(os.environ.get("OUT") or tempfile.mkdtemp())
    out.mkdir(parents=True, exist_ok=True)
    check = Check(Options(found.device, found.tiny, found.budget, only, found.pytest_seconds), out)
    if found.compile_child:
        from gpu_check.compiled import in_child

        in_child(check)
        return
    if found.fsdp_child:
        from gpu_check import sizes

        sizes.in_child(check)
        return
    _run(check)


def _run(check: Check) -> None:
    from gpu_check import bare, compiled, environment, sizes, smoke, steps, waits

    tests = smoke.GpuTests(check)
    check.attempt("environment", lambda: environment.environment(check, IMPORT_TORCH), needs=1)
    check.attempt("limits", lambda: environment.limits(check), needs=5)
    if not check.options.only or "pytest" in check.options.only:
        tests.start()
    if not check.options.only or "smoke" in check.options.only:
        smoke.smoke(check)
    check.attempt("agreement", lambda: smoke.agreement(check), needs=20)
    check.attempt("pytest", tests.finish)
    check.attempt("bare unet", lambda: bare.bare(check), needs=60)
    if not check.options.only or "train" in check.options.only:
        steps.cases(check)
    if not check.options.only or "sizes" in check.options.only:
        sizes.sizes(check)
    check.attempt("syncs", lambda: waits.waits(check), needs=15 + steps.reserve_for_compile(check))
    check.attempt("compile", lambda: compiled.compiled(check), needs=60)
    steps.table(check)
    if not check.options.tiny:
        steps.reference_from_bare_calls(check)
    what, rate = check.best()
    seconds = time.time() - START
    print(f"best bare network rate: {rate:.1f} forwards/s ({what}); {seconds:.0f} s in all")
    print(f"crashes: {check.crashes};", flush=True)
