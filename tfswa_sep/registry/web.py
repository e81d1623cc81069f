"""HTTP requests: which redirections are allowed, how large a response may be, and how errors are reported.

A redirection must be to https and not to a private address, unless it stays at the origin (host and port) that the
user chose: the address itself, or HF_ENDPOINT. Other uses of huggingface_hub in this process are unaffected.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from tfswa_sep.errors import ModelError, TfswaError


@dataclass(frozen=True)
class _Guard:
    chosen: str  # the address that the user chose
    limit: int  # bytes of a response


_credentials: dict[tuple[str, int], tuple[str, str]] = {}  # origin -> user and password, of this process only
_guard: ContextVar[_Guard | None] = ContextVar("_guard", default=None)


@contextmanager
def network_errors(what: str) -> Iterator[None]:
    """Raise network errors, which have no common base class, as a ModelError of one line."""
    try:
        yield
    except TfswaError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise  # a disk error: network errors are no OSError, or have no errno
        reason = str(error.__cause__ or error).partition("\n")[0].rstrip(".")
        raise ModelError(f"cannot download {what}: {reason} (is this machine online?)") from error


@contextmanager
def guarded_client(chosen: str, *, limit: int) -> Iterator[Any]:
    """huggingface_hub's HTTP client, whose requests from this thread are checked within the context.

    Args:
        chosen: The address that the user chose; its origin may be private.
        limit: Bytes of a response.
    """
    from huggingface_hub import get_session

    session = get_session()
    if _check_request not in session.event_hooks["request"]:
        session.event_hooks["request"].append(_check_request)
        session.event_hooks["response"].append(_check_response)
    token = _guard.set(_Guard(chosen, limit))
    try:
        yield session
    finally:
        _guard.reset(token)


def take_credentials(url: str) -> str:
    """Keep user:password@ of an address in memory, for downloads from that origin; return the rest of it."""
    try:
        parts = urlsplit(url)
        if parts.username is None and parts.password is None:
            return url
        plain = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        _credentials[_origin(plain)] = unquote(parts.username or ""), unquote(parts.password or "")
    except ValueError:  # not an address
        return url
    return plain


def credentials(url: str) -> tuple[str, str] | None:
    """User and password for an address."""
    return _credentials.get(_origin(url))


def _check_request(request: Any) -> None:
    """Called by the HTTP client before each request, including redirections."""
    guard, url = _guard.get(), str(request.url)
    if guard is None or _origin(url) == _origin(guard.chosen):
        return
    host, port = _origin(url)
    if request.url.scheme != "https":
        raise ModelError(f"the download was redirected to {url}, which is not https: refused")
    try:
        addresses = {entry[4][0] for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except OSError:
        return  # the client fails too, or asks a proxy
    for text in addresses:
        ip = ipaddress.ip_address(str(text).partition("%")[0])
        if not (getattr(ip, "ipv4_mapped", None) or ip).is_global:
            raise ModelError(f"the download was redirected to {host}, a private address ({ip}): refused")


def _check_response(response: Any) -> None:
    """Called by the HTTP client when a response begins."""
    guard = _guard.get()
    if guard is None:
        return
    length = response.headers.get("X-Linked-Size") or response.headers.get("Content-Length") or ""
    if response.is_success and length.isdecimal() and int(length) > guard.limit:
        raise ModelError(f"{guard.chosen} is larger than the expected {guard.limit} bytes")


def _origin(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443)
