"""Remarks of other packages that tell a user of amsd nothing: dropped, each by its logger and its words.

Whatever else these loggers say passes. The filters are set before the packages are imported, because some speak then.
"""

from __future__ import annotations

import logging

REMARKS = {
    # bitsandbytes, which pyiqa brings along, misses an optional CPU kernel for 4-bit weights when it is imported.
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
    # diffusers warns at every cast of a network, of the modules [].
    "diffusers.models.modeling_utils": "should be kept in float32: []",
}


class _Without(logging.Filter):
    def __init__(self, words: str) -> None:
        super().__init__()
        self._words = words

    def filter(self, record: logging.LogRecord) -> bool:
        """False for the remark."""
        return self._words not in record.getMessage()


def drop_remarks() -> None:
    """Drop the remarks of `REMARKS` in this process, once."""
    for name, words in REMARKS.items():
        logger = logging.getLogger(name)
        if not any(isinstance(found, _Without) for found in logger.filters):
            logger.addFilter(_Without(words))
