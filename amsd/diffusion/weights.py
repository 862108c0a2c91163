"""Files of weights read number by number, before a run begins: a NaN in one of them would end it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from amsd.diffusion.families.single_file import tensors_of
from amsd.diffusion.finite import require_finite_file
from amsd.reading import is_safetensors, reading

LARGEST = 8 * 2**30
"""Bytes of all files together above which a check would take long: the run itself reads them as its first thing."""


def require_finite_weights(files: Sequence[Path], what: str) -> None:
    """Check every number of the files, unless they are large.

    Raises:
        UsageError: one is NaN or infinite, or a file cannot be read; file and tensor are named.
    """
    if sum(file.stat().st_size for file in files) > LARGEST:
        return
    for file in files:
        with reading(what, file):
            require_finite_file(_tensors(file), f"{what}: {file}")


def _tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file, one after the other where its format allows."""
    from safetensors import safe_open

    if not is_safetensors(file):
        yield from tensors_of(file).items()
        return
    with safe_open(file, framework="pt") as stream:
        for name in stream.keys():  # noqa: SIM118
            yield name, stream.get_tensor(name)
