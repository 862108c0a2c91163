"""A reward behind HTTP: images and prompts are posted to a server, scores come back (docs/rewards.md, "Server").

Request: one line of JSON, then the pixels as raw little-endian float32 (B, 3, H, W), so that the server computes on
the very numbers that a function in this process would get. Answer: `{"scores": [...]}`. A GET of the same URL answers
`{"version": "..."}`, which makes results of another version known as such.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from email.message import Message
from http.client import HTTPException
from typing import Any, Self
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, OpenerDirector, ProxyHandler, Request, build_opener

import torch
from torch import Tensor

from amsd.errors import UsageError
from amsd.rewards.calling import RewardFailed, WrongScores, as_scores, in_float32
from amsd.rewards.preprocess import check_pairs
from amsd.rewards.user import calls_of
from amsd.urls import scrubbed, server_fault, shown_server

PROTOCOL = 1
"""Version of the protocol, sent with each request."""
_LOG = logging.getLogger(__name__)
_SHOWN = 300
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Status codes of a server that may answer later."""
_IMAGES = 32
_LARGEST = 2**24
"""Bytes of an answer."""


class _Refused(Exception):
    """An answer that another try would not change."""


class HTTPReward:
    """The scores of a server; they have no gradient.

    Args:
        rest: what follows the scheme in the URL.
        timeout: seconds to wait for one answer.
        retries: how often a request is sent again if nothing answers, or the server says that it is busy or failed.
        images_per_call: at most this many images in a request (32); a groupwise request is never divided.
        groupwise: each request holds all samples of one prompt's group, and nothing else.
        token_env: name of an environment variable; its value is sent as `Authorization: Bearer VALUE`.
        version: what the server computes with; unset: the server is asked.
        parameters: sent to the server as they are.

    Raises:
        UsageError: the URL or an option is wrong, or no reward server answers there.
    """

    scheme = "http"

    def __init__(
        self,
        rest: str,
        timeout: float = 60.0,
        retries: int = 5,
        images_per_call: int | None = None,
        groupwise: bool = False,
        token_env: str | None = None,
        version: str | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = f"{self.scheme}:{rest}"
        if (fault := server_fault(self.name)) is not None:
            raise UsageError(f"reward {shown_server(self.name)!r}: {fault}")
        self._timeout, self._retries = _number("timeout", timeout, 1e-3), int(_number("retries", retries, 0))
        self._most = calls_of(images_per_call, groupwise) or _IMAGES
        self._groupwise = groupwise
        self._headers = {"User-Agent": "amsd", **_authorization(self.name, token_env)}
        self._secret = self._headers.get("Authorization", "").removeprefix("Bearer ")
        self._parameters = dict(parameters or {})
        self._opener = _opener(self.name)
        given = json.dumps([self._parameters, groupwise], sort_keys=True, default=str)
        found = version if version is not None else self._ask_version()
        self.version = hashlib.sha256(f"{PROTOCOL} {found} {given}".encode()).hexdigest()[:12]

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,), without gradient, of images (B, 3, H, W) in [0, 1].

        Raises:
            RewardFailed: nothing answers, or what comes is no scores; the URL and what came are named.
        """
        check_pairs(images, prompts)
        size = max(1, len(images)) if self._groupwise else self._most
        pixels = images.detach().to("cpu", torch.float32).contiguous()
        parts = [
            self._scores(pixels[start : start + size], prompts[start : start + size])
            for start in range(0, len(images), size)
        ]
        return (
            in_float32(torch.cat(parts), images.device, f"reward server {self.name}") if parts else images.new_zeros(0)
        )

    def to(self, device: torch.device | str) -> Self:
        """Nothing to move: the server has its own device."""
        return self

    def truncated(self, prompts: Sequence[str]) -> int:
        """The server is given whole prompts, so none is counted as cut."""
        return 0

    def _scores(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        header = {
            "protocol": PROTOCOL, "shape": list(images.shape), "dtype": "float32", "prompts": list(prompts),
            "groupwise": self._groupwise, "parameters": self._parameters,
        }  # fmt: skip
        body = json.dumps(header).encode() + b"\n" + images.numpy().astype("<f4", copy=False).tobytes()
        try:
            answer = self._insist(Request(self.name, body, {**self._headers, "Content-Type": CONTENT_TYPE}))
        except _Refused as refused:
            raise RewardFailed(f"reward server {self.name}: {refused}") from refused.__cause__
        found = _json(answer)
        scores = found.get("scores") if isinstance(found, dict) else None
        if not isinstance(scores, list):
            wanted = f'{{"scores": [{len(images)} numbers]}}'
            raise WrongScores(f"reward server {self.name}: expected {wanted}, but got {self._shown(answer)}")
        return as_scores(scores, len(images), f"reward server {self.name}")

    def _ask_version(self) -> str:
        try:
            answer = self._insist(Request(self.name, headers=self._headers), tries=1)
        except _Refused as refused:
            hint = (
                "A reward server answers GET with its version (docs/rewards.md); for one that does not, set options = "
                '{ version = "..." }.'
            )
            if refused.__cause__ is not None:
                hint = "Start the server, or correct the URL."
            raise UsageError(f"reward server {self.name}: {refused} {hint}") from refused.__cause__
        found = _json(answer)
        version = found.get("version") if isinstance(found, dict) else None
        if not isinstance(version, str | int | float):
            raise UsageError(
                f'reward server {self.name}: GET must answer {{"version": "..."}}, but got {self._shown(answer)}. '
                'For a server without it set options = { version = "..." }.'
            )
        return str(version)

    def _insist(self, request: Request, tries: int | None = None) -> bytes:
        """The body of the answer; what a server may do better at another try is tried again, ever more slowly.

        Raises:
            _Refused: no try was answered, or the answer is final.
        """
        tries = 1 + self._retries if tries is None else tries
        wait, began = _FIRST_WAIT, time.monotonic()
        for number in range(1, tries + 1):
            try:
                with self._opener.open(request, timeout=self._timeout) as answer:
                    return _whole(answer, time.monotonic() + self._timeout)
            except HTTPError as error:
                reason = f"answered {error.code} {self._scrubbed(str(error.reason))}: {self._shown(_read(error))}"
                if error.code not in _TRANSIENT:
                    raise _Refused(f"{reason}.") from None
                wait = max(wait, _asked_wait(error.headers))
                cause: Exception | None = None
            except (URLError, HTTPException, OSError) as error:
                inner = error.reason if isinstance(error, URLError) else error
                late = isinstance(inner, TimeoutError | socket.timeout)
                text = getattr(inner, "strerror", None) or str(inner)
                said = f"no answer within {self._timeout:g} s" if late else self._scrubbed(text)
                reason, cause = said or type(inner).__name__, error
            if number < tries:
                _LOG.warning("reward server %s: %s; trying again in %g s", self.name, reason, wait)
                time.sleep(wait)
                wait = min(2 * wait, _LONGEST_WAIT)
        often = "" if tries == 1 else f" (tried {tries} times in {time.monotonic() - began:.0f} s)"
        raise _Refused(f"{reason}{often}.") from cause

    def _shown(self, content: bytes) -> str:
        text = self._scrubbed(" ".join(content.decode("utf-8", "replace").split()))
        return (f"{text[:_SHOWN]}..." if len(text) > _SHOWN else text) or "nothing"

    def _scrubbed(self, text: str) -> str:
        text = "".join(letter if letter.isprintable() else "?" for letter in scrubbed(text, self.name))
        return text.replace(self._secret, "***") if self._secret else text


class HTTPSReward(HTTPReward):
    """The same, encrypted."""

    scheme = "https"


CONTENT_TYPE = "application/x-amsd-images"


def _number(name: str, value: object, least: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < float("inf"):
        raise UsageError(f"option {name} = {value!r}: must be a number from {least:g} on")
    return value


def _authorization(name: str, variable: str | None) -> dict[str, str]:
    if variable is None:
        return {}
    value = os.environ.get(variable, "").strip()
    if not value:
        raise UsageError(f"reward {name!r}: token_env names {variable}, which is not set in the environment")
    return {"Authorization": f"Bearer {value}"}


class _NoRedirect(HTTPRedirectHandler):
    """Pictures go to the address that the recipe names and to no other."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: the answer itself becomes the error."""


def _opener(url: str) -> OpenerDirector:
    """Through the user's proxy, but never to this machine itself."""
    host = urlsplit(url).hostname or ""
    own = host in ("localhost", "::1") or host.startswith("127.")
    return build_opener(_NoRedirect, *([ProxyHandler({})] if own else []))


def _whole(answer: Any, deadline: float) -> bytes:
    """The body of an answer that is there by the deadline.

    Raises:
        TimeoutError: the server is still sending.
        _Refused: it sends more than scores can be.
    """
    parts: list[bytes] = []
    while part := answer.read1(2**16):
        parts.append(part)
        if time.monotonic() > deadline:
            raise TimeoutError
        if sum(map(len, parts)) > _LARGEST:
            raise _Refused(f"its answer has more than {_LARGEST:,} bytes; a list of scores is shorter.")
    return b"".join(parts)


def _asked_wait(headers: Message) -> float:
    """Seconds that the server asks to wait."""
    asked = str(headers.get("Retry-After", ""))
    return min(float(asked), _LONGEST_WAIT) if asked.isdigit() else 0.0


def _read(error: HTTPError) -> bytes:
    try:
        return error.read()
    except (OSError, HTTPException):
        return b""


def _json(content: bytes) -> object:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None
