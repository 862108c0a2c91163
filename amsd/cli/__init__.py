"""The command line: one file per command; nothing heavy is imported before a command needs it."""

from __future__ import annotations

import atexit


def main() -> None:
    """Run the command line, and listen to signals from the first moment on to the last."""
    from amsd.ends import Ends, leave_at_once

    try:
        with Ends(alone=True) as ends, ends.held():
            from amsd.cli.app import run

            run(ends)
    except SystemExit as end:
        atexit.register(leave_at_once, end.code if isinstance(end.code, int) else int(end.code is not None))
        raise


__all__ = ["main"]
