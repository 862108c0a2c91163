"""Prompts longer than a text encoder reads: cut into windows of tokens, each encoded by the pipeline's own rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")

_SPECIAL = 2
"""Tokens of every window that mark its beginning and its end."""


def tokens_read(length: int, windows: int) -> int:
    """Tokens of a prompt, its two special ones included, that so many windows of `length` tokens hold."""
    return windows * (length - _SPECIAL) + _SPECIAL


def windows_needed(tokens: int, length: int) -> int:
    """Windows of `length` tokens that a prompt of so many tokens, special ones included, fills."""
    return max(1, -(-(tokens - _SPECIAL) // (length - _SPECIAL)))


def encode_windows(pipeline: Any, names: Sequence[str], count: int, encode: Callable[[], T]) -> list[T]:
    """What `encode` makes of each of the first `count` windows of its texts, read by the tokenizers `names`."""
    if count == 1:
        return [encode()]
    found = []
    for number in range(count):
        with _reading_window(pipeline, names, number):
            found.append(encode())
    return found


@contextmanager
def _reading_window(pipeline: Any, names: Sequence[str], number: int) -> Iterator[None]:
    """Inside, the tokenizers `names` of a pipeline give the window `number` of a text in place of its beginning."""
    own = {name: getattr(pipeline, name) for name in names}
    try:
        for name, tokenizer in own.items():
            setattr(pipeline, name, _Window(tokenizer, number))
        yield
    finally:
        for name, tokenizer in own.items():
            setattr(pipeline, name, tokenizer)


class _Window:
    """A tokenizer of which only one window is seen; window 0 of a text that fits is what the tokenizer gives."""

    def __init__(self, tokenizer: Any, number: int) -> None:
        self._tokenizer = tokenizer
        self._number = number

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, texts: str | Sequence[str], **_: Any) -> Any:
        """Ids (B, length) of the window and their mask, padded as the tokenizer pads."""
        tokenizer = self._tokenizer
        size = tokenizer.model_max_length - _SPECIAL
        texts = [texts] if isinstance(texts, str) else list(texts)
        plain = tokenizer(texts, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        start = self._number * size
        ids = [
            [tokenizer.bos_token_id, *tokens[start : start + size], tokenizer.eos_token_id] for tokens in plain
        ]  # fmt: skip
        return tokenizer.pad(
            {"input_ids": ids}, padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt"
        )
