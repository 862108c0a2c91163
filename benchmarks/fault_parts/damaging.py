"""How a file of a run is damaged, by the benchmark of faults and by the tests."""

from __future__ import annotations

from pathlib import Path


def damage_file(file: Path, kind: str) -> None:
    """Damage a file; `kind` is truncated, emptied, another type, folder, or anything else to remove it."""
    data = file.read_bytes()
    if kind == "truncated":
        file.write_bytes(data[: len(data) // 2])
    elif kind == "emptied":
        file.write_bytes(b"")
    elif kind == "another type":
        file.write_bytes(b"[3, null]" if file.suffix != ".png" else b"\x89PNG nothing")
    else:
        file.unlink()
        if kind == "folder":
            file.mkdir()
