"""Errors that end a command with one clear message instead of a traceback.

Exit codes are a promise to users (0 success, 1 run failed, 2 usage or recipe error); the command line maps
`AmsdError.exit_code` to them and nothing else does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_typed = False
"""Whether the command line runs, so that options are named as they are typed there."""


class AmsdError(Exception):
    """A failure that amsd understands; its text says what happened, with the value, and what to do."""

    exit_code = 1

    def __str__(self) -> str:
        """The text as a terminal and a log can show it, whatever a file or a command line has put into it."""
        return printable(super().__str__())


class UsageError(AmsdError):
    """The user asked for something that cannot be done: a wrong recipe, file, model or option."""

    exit_code = 2


class RunError(AmsdError):
    """A run failed after it had started (non-finite values, lost files, a dead worker)."""

    exit_code = 1


class Diverged(RunError):
    """The weights in hand draw samples that are not finite: nothing may be made of them."""


@contextmanager
def on_command_line() -> Iterator[None]:
    """While a command runs: what is said names options as a terminal takes them."""
    global _typed
    before, _typed = _typed, True
    try:
        yield
    finally:
        _typed = before


def option(name: str, python: str = "") -> str:
    """An option as whoever reads it would give it: `--name` on the command line, in Python the argument `python`."""
    return f"--{name}" if _typed else python or name


def nearest(name: object, names: Sequence[str]) -> str | None:
    """`Did you mean ...?` with the closest of `names`, or all of them where none is close."""
    from difflib import get_close_matches

    close = get_close_matches(str(name), names, n=1, cutoff=0.5)
    if close:
        return f"Did you mean {close[0]!r}?"
    return f"Known: {', '.join(names)}." if names else None


def printable(text: str) -> str:
    """`text` with everything escaped that is no Unicode, or that would steer a terminal; lines and tabs stay."""
    if text.isascii() and text.isprintable():
        return text
    shown = (char if char.isprintable() or char in "\n\t" else ascii(char)[1:-1] for char in text)
    return "".join(shown)
