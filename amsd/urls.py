"""URLs as they may be shown and written: without passwords."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

STORAGES = ("sqlite", "postgresql", "journal", "grpc")
"""Schemes of a sweep's storage."""


def scheme_of(url: str) -> str:
    """What stands before the first colon, without a driver's name."""
    return url.partition(":")[0].partition("+")[0] if ":" in url else ""


def printable(url: str) -> str:
    """The URL as it may be shown and written: without passwords, however malformed it is.

    Of what stands before the last `@` only the scheme and the user's name are kept, and not even the name where no
    `//` says where it begins. Query parameters that may be secret are left out. Paths of files stay as they are. A
    password belongs in the environment (`PGPASSWORD`) or in a password file.
    """
    if not re.match(r"sqlite(\+\w+)?:///|journal:(?!//[^/])(?!\w+:)", url):
        url = _without_login(url)
    if not re.search(_SECRET + r"[\w-]*\s*=", unquote(url)):
        return url
    kept: list[str] = []
    secret = False
    for part in re.split(r"[?&;\s]", url):
        name, equals, _ = unquote(part).partition("=")
        secret = bool(re.search(_SECRET, name)) if equals else secret
        if secret and not kept:
            kept.append(re.split(_SECRET, name)[0])
        elif not secret:
            kept.append(part)
    return kept[0] + ("?" + "&".join(kept[1:]) if kept[1:] else "")


#: Names of query parameters whose values are not shown.
_SECRET = "(?i)(?:pass|pwd|secret|token|credential|api_?key)"


def _without_login(url: str) -> str:
    known = scheme_of(url) in (*STORAGES, "postgres")
    head, at, tail = url.rpartition("@")
    if not at:
        scheme, slashes, rest = url.partition("://")
        if not slashes:
            return url if known or ":" not in url else f"{url.partition(':')[0]}:..."
        host, colon, port = re.split(r"[/?#]", rest)[0].rpartition(":")
        is_password = colon and not port.isdigit() and not port.endswith("]")  # `USER:PASSWORD` whose host is missing
        return f"{scheme}://{host}" if is_password else url
    scheme, slashes, login = head.partition("://")
    if not slashes:
        return f"{scheme_of(url)}:{tail}" if known else tail
    user = re.split(r"[:/?#@&]", login)[0]
    return f"{scheme}://{user}@{tail}" if user else f"{scheme}://{tail}"


def scrubbed(text: str, url: str) -> str:
    """A message of a library, in which the URL and its secrets are replaced."""
    shown, secrets = printable(url), set()
    for part in re.split(r"[/?&;\s@:]+", url):
        value = part.partition("=")[2] or part
        if value and value not in shown:
            secrets |= {value, unquote(value)}
    text = text.replace(url, shown)
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


SERVERS = ("http", "https")
"""Schemes of a reward server."""


def is_server(name: str) -> bool:
    """Whether a scorer's name is the URL of a reward server."""
    return name.partition(":")[0] in SERVERS


def shown_server(url: str) -> str:
    """The URL of a server as it may be shown: without the user too, for some services take a token in that place."""
    shown = printable(url)
    return f"{scheme_of(url)}://{shown.rpartition('@')[2]}" if "@" in shown else shown


def server_fault(url: str) -> str | None:
    """Why this cannot be the URL of a reward server, which is a name in recipes, logs and reports; None: it can be."""
    if not url.partition(":")[2].startswith("//"):
        return "is not a URL; write http://HOST:PORT/PATH."
    if printable(url) != url or "@" in url:
        return (
            "a reward's name is written to logs and reports, so its URL may hold no login and no password. Put the "
            'token into an environment variable and name that: options = { token_env = "NAME" }.'
        )
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        return f"is not a URL ({error}); write http://HOST:PORT/PATH."
    if not usable or any(letter.isspace() or not letter.isprintable() for letter in url):
        return "is not a URL; write http://HOST:PORT/PATH."
    return "what follows # is never sent to a server: remove it." if "#" in url else None
