"""Prompts as the scorers' text networks read them, and how many of them are cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from amsd.errors import UsageError
from amsd.reading import reading
from amsd.rewards.checkpoints import find_folder

_OPTIONAL = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


@dataclass(frozen=True)
class Tokens:
    """A batch of tokenized prompts."""

    ids: Tensor
    """(B, T), int64."""
    mask: Tensor
    """(B, T), int64: 1 where a token is, 0 where padding is."""


class Tokenizer:
    """A transformers tokenizer of fixed length: longer prompts are cut, and counted when asked for."""

    def __init__(self, tokenizer: Any, length: int) -> None:
        self.length = length
        self._tokenizer = tokenizer

    @property
    def vocabulary(self) -> str:
        """Every token with its id, as one string; part of a scorer's version."""
        return repr(sorted(self._tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0])))

    def __call__(self, prompts: Sequence[str], device: torch.device) -> Tokens:
        """Tokenize, cut and pad to `length`."""
        batch = self._tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        )
        return Tokens(batch.input_ids.to(device), batch.attention_mask.to(device))

    def truncated(self, prompts: Sequence[str]) -> int:
        """How many of these prompts have more tokens than are read."""
        if not prompts:
            return 0
        lengths = map(len, self._tokenizer(list(prompts), truncation=False, verbose=False).input_ids)
        return sum(length > self.length for length in lengths)


def load_clip_tokenizer(source: str, what: str, length: int, size: int, revision: str | None = None) -> Tokenizer:
    """CLIP's byte-pair tokenizer from a local folder or the hub.

    Raises:
        UsageError: it is absent or its vocabulary is not of the `size` that the text network has.
    """
    folder = find_folder(
        source, what, [("tokenizer.json", "vocab.json")], ("vocab.json", "merges.txt", *_OPTIONAL), revision
    )
    from transformers import CLIPTokenizer

    with reading(f"{what} = {source!r}", folder):
        tokenizer = CLIPTokenizer.from_pretrained(str(folder))
    _check_size(len(tokenizer), (size,), what, source)
    return Tokenizer(tokenizer, length)


def load_bert_tokenizer(source: str, what: str, length: int, size: int) -> Tokenizer:
    """BERT's word-piece tokenizer from a local folder or the hub.

    BLIP adds two tokens ([DEC], [ENC]) that no prompt contains, so the vocabulary may lack them.

    Raises:
        UsageError: it is absent or its vocabulary is not the one of a text network with `size` tokens.
    """
    folder = find_folder(source, what, [("tokenizer.json", "vocab.txt")], ("vocab.txt", *_OPTIONAL))
    from transformers import BertTokenizer

    with reading(f"{what} = {source!r}", folder):
        tokenizer = BertTokenizer.from_pretrained(str(folder))
    _check_size(len(tokenizer), (size - 2, size), what, source)
    return Tokenizer(tokenizer, length)


def _check_size(found: int, allowed: tuple[int, ...], what: str, source: str) -> None:
    # transformers builds an almost empty tokenizer, without a word, where files are missing.
    if found not in allowed:
        expected = " or ".join(map(str, allowed))
        raise UsageError(f"{what} = {source!r}: the tokenizer has {found} tokens; the text network has {expected}")
