"""`python -I leash.py PARENT COMMAND...`: run COMMAND, which gets SIGTERM when the process PARENT dies.

Standard library only, run by its path, so that it starts at once.

A worker that is killed outright cannot end its trial; the kernel then does (Linux: PR_SET_PDEATHSIG survives exec).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Put this process on the leash, then become the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it died before the leash was on
            sys.exit(128 + signal.SIGTERM)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
