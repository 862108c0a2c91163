"""What a prompt source is read into."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from amsd.errors import UsageError


class PromptError(UsageError):
    """A prompt source that cannot be used; the text names the file and, where there is one, the line."""


@dataclass(frozen=True)
class PromptSet:
    """Distinct, non-empty prompts in the order of their first appearance.

    Each prompt stands once, so that a mean over prompts is a mean over independent ones; what was left out is counted.
    """

    source: str
    """What the recipe named."""
    texts: tuple[str, ...]
    duplicates: int = 0
    """Entries left out because the same prompt stood before."""
    empty: int = 0
    """Entries left out because they held nothing but white space."""

    @classmethod
    def from_entries(cls, source: str, entries: Iterable[str]) -> PromptSet:
        """Strip white space around entries, leave out empty and repeated ones, and count both.

        Raises:
            PromptError: no prompt is left.
        """
        stripped = [entry.strip() for entry in entries]
        for number, entry in enumerate(stripped, start=1):
            if entry.encode("utf-8", "replace").decode("utf-8") != entry:
                raise PromptError(f"{source}, entry {number}: is not Unicode text.")
            if "\0" in entry:
                raise PromptError(f"{source}, entry {number}: holds a NUL character, so it is not text.")
        filled = [entry for entry in stripped if entry]
        texts = tuple(dict.fromkeys(filled))
        if not texts:
            count = f"{len(stripped)} entries, all of them empty" if stripped else "it is empty"
            raise PromptError(f"{source}: holds no prompt ({count}).")
        return cls(source, texts, duplicates=len(filled) - len(texts), empty=len(stripped) - len(filled))

    @property
    def identity(self) -> str:
        """sha256 of the texts in their order; where they came from does not matter."""
        return hashlib.sha256(json.dumps(self.texts, ensure_ascii=False).encode()).hexdigest()

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a user should know about the source, one sentence each."""
        return tuple(self._remarks())

    def _remarks(self) -> Iterator[str]:
        if self.duplicates:
            yield f"{self.source}: {_count(self.duplicates, 'repeated prompt')} left out, {len(self.texts)} remain."
        if self.empty:
            yield f"{self.source}: {_count(self.empty, 'empty prompt')} left out, {len(self.texts)} remain."

    def __len__(self) -> int:
        return len(self.texts)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s were' if number > 1 else ' was'}"
