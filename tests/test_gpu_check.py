"""`benchmarks/gpu.py` runs on the CPU to its end, gives the lines that are read elsewhere, and counts what crashed."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("gpu_check.record")


def check_of(record: Any, out: Path, **options: Any) -> Any:
    return record.Check(record.Options(device="cpu", tiny=True, **options), out)


def test_a_crash_is_a_finding_and_the_next_part_runs(record: Any, tmp_path: Path) -> None:
    check = check_of(record, tmp_path)

    def broken() -> None:
        raise ValueError("not today")

    check.attempt("smoke", broken, case="fp32")
    check.attempt("limits", lambda: check.say("limits", found=1))
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [line["part"] for line in lines] == ["smoke", "limits"]
    assert lines[0]["case"] == "fp32"
    assert lines[0]["CRASH"] == "ValueError: not today"
    assert any("test_gpu_check.py" in place for place in lines[0]["where"])
    assert check.crashes == 1


def test_parts_out_of_time_are_skipped_and_unwanted_ones_silent(record: Any, tmp_path: Path) -> None:
    check = check_of(record, tmp_path, budget=0.0, only=("train",))
    ran: list[str] = []
    check.attempt("limits", lambda: ran.append("limits"))
    check.attempt("train", lambda: ran.append("train"), needs=60, case="full")
    assert ran == []
    (line,) = check.rows
    assert (line["part"], line["case"]) == ("train", "full")
    assert line["skipped"].startswith("needs about 60 s")


def run(tmp_path: Path, *options: str) -> tuple[list[dict[str, Any]], str]:
    """Lines of JSON, and everything else that was printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OUT": str(tmp_path)}
    command = [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--tiny", "--pytest-seconds", "0", *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")], "\n".join(
        line for line in lines if not line.startswith("{")
    )


@pytest.mark.slow
def test_the_whole_check_but_compile_runs_on_the_cpu(tmp_path: Path) -> None:
    parts = ["environment", "limits", "smoke", "agreement", "bare unet", "train", "sizes", "syncs"]
    rows, text = run(tmp_path, "--budget", "500", "--only", ",".join(parts))
    assert text.splitlines()[-1] == "crashes: 0;"
    assert [part for part in parts if not any(row["part"] == part for row in rows)] == []
    assert rows == [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    by_part = {part: [row for row in rows if row["part"] == part] for part in parts}
    assert {row["case"] for row in by_part["smoke"]} >= {"fp32", "lora bf16", "evaluation and resume"}
    assert by_part["smoke"][-1]["bit_identical"] is True
    assert max(by_part["agreement"][0]["relative_error"].values()) == 0
    assert {"fp32 (tf32)", "pure bf16, channels_last", "amsd base vjp"} <= {
        row.get("what") for row in by_part["bare unet"]
    }
    train = by_part["train"][0]
    assert {
        "s_per_update",
        "images_per_s",
        "forwards_per_s",
        "share_of_best_bare",
        "peak_gib",
        "phases",
    } <= train.keys()
    assert train["images_per_s"] * train["s_per_update"] == pytest.approx(2, rel=0.01)
    assert by_part["syncs"][0]["casts_and_copies"] > 0
    sizes = {row["case"]: row for row in by_part["sizes"]}
    for name in ("SD 3.5 medium, LoRA, 1024", "SDXL, LoRA, 1024", "FSDP2, SD 3.5 medium, full, 512"):
        assert sizes[name]["s_per_update"] > 0
        assert sizes[name]["plan_gib"] > 5
    assert sizes["FSDP2, SD 3.5 medium, full, 512"]["network"].startswith("FSDP")
    assert max(sizes["FSDP2, embedded flow model, fp32"]["relative_difference"].values()) < 1e-3
