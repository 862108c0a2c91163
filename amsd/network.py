"""Whether a web server answers, known within seconds where a client of its own would retry for most of a minute."""

from __future__ import annotations

import ssl
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

_PATIENCE = 5.0
"""Seconds to wait for a server's first answer."""


def unreachable(address: str) -> str | None:
    """Why a web server cannot be reached (through the proxies of the environment), or None if it answers at all.

    A certificate that Python does not trust counts as an answer: the server's own client judges it by its own list.
    """
    try:
        with urlopen(Request(address, method="HEAD"), timeout=_PATIENCE):
            return None
    except HTTPError:
        return None  # it answered
    except URLError as error:
        return None if isinstance(error.reason, ssl.SSLError) else str(error.reason)
    except (OSError, ValueError) as error:
        return str(error)
