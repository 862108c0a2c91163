"""Errors that end a command with one clear message instead of a traceback.

Exit codes are a promise to users (0 success, 1 run failed, 2 usage or recipe error); the command line maps
`AmsdError.exit_code` to them and nothing else does.
"""

from __future__ import annotations


class AmsdError(Exception):
    """A failure that amsd understands; its text says what happened, with the value, and what to do."""

    exit_code = 1


class UsageError(AmsdError):
    """The user asked for something that cannot be done: a wrong recipe, file, model or option."""

    exit_code = 2


class RunError(AmsdError):
    """A run failed after it had started (non-finite values, lost files, a dead worker)."""

    exit_code = 1


class Diverged(RunError):
    """The weights in hand draw samples that are not finite: nothing may be made of them."""
