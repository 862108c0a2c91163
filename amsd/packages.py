"""Optional packages, asked for by the key that needs them."""

from __future__ import annotations

from importlib.util import find_spec

from amsd.errors import UsageError


def require_bitsandbytes(key: str) -> None:
    """Check that bitsandbytes is installed.

    Raises:
        UsageError: it is not; `key` is what asked for it.
    """
    if find_spec("bitsandbytes") is None:
        raise UsageError(f"{key} needs the package bitsandbytes: uv pip install 'amsd[quantized]'")
