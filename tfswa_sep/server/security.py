"""Who may send requests, and headers that keep hostile content harmless.

A page of another site can make a browser send requests to 127.0.0.1. It is stopped by three checks: `Host` must be an
IP address, localhost or an allowed name (DNS rebinding), `Origin` must be this server's (CSRF), and browsers say in
`Sec-Fetch-Site` whether another site asked. Programs such as curl send none of the last two.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
from collections.abc import Collection, Mapping
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tfswa_sep.options import ServeOptions

COOKIE = "tfswa-sep"
_OPEN = ("/health", "/login", "/style.css")  # paths that need no token
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
WRONG_TOKEN_SECONDS = 0.5  # that the answer to a wrong token takes
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; media-src 'self'; worker-src 'self'; manifest-src 'self'; base-uri 'none'; "
        "form-action 'self'; frame-ancestors 'none'"
    ),
    "cross-origin-embedder-policy": "require-corp",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class Guard:
    """Middleware that refuses forged and unauthorized requests, and adds headers to every answer."""

    def __init__(self, app: ASGIApp, *, options: ServeOptions, login_page: bytes) -> None:
        self._app = app
        self._options = options
        self._login_page = login_page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store" if scope["path"][:4] == "/v1/" else "no-cache")
            await send(message)

        refusal = await self._check(scope)
        await (refusal or self._app)(scope, receive, send_safely)

    async def _check(self, scope: Scope) -> Response | None:
        """The answer to a request that is refused."""
        headers, path = Headers(scope=scope), scope["path"]
        host = headers.get("host", "")
        if not _is_allowed_host(host, self._options):
            return refuse(403, "Host", "the server does not answer to this host name: see --allow-host")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return refuse(403, "Origin", "a page of another site may not use this server")
        changes = scope["method"] not in _SAFE_METHODS
        from_elsewhere = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        if from_elsewhere and (changes or headers.get("sec-fetch-mode") != "navigate"):
            return refuse(403, "Origin", "a page of another site may not use this server")
        if self._options.token is None or path in _OPEN or is_authorized(headers, self._options.token):
            return None
        if headers.get("authorization"):
            await asyncio.sleep(WRONG_TOKEN_SECONDS)
        if path == "/" and not changes:
            return Response(self._login_page, 401, media_type="text/html")
        needed = {"www-authenticate": "Bearer"}
        return refuse(401, "Token", "send the token: Authorization: Bearer TOKEN", needed)


def refuse(status: int, kind: str, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """Every error as the API answers it: {"error": {"kind", "message"}}."""
    return JSONResponse({"error": {"kind": kind, "message": message}}, status, headers)


def is_authorized(headers: Headers, token: str) -> bool:
    """Whether a request has the token, or the cookie that was given for it."""
    kind, _, sent = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return same_secret(sent.strip(), token)
    cookies: SimpleCookie = SimpleCookie()
    try:
        cookies.load(headers.get("cookie", ""))
    except CookieError:
        return False
    return COOKIE in cookies and same_secret(cookies[COOKIE].value, session_cookie(token))


def same_secret(sent: str, secret: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(sent.encode("utf-8", "replace"), secret.encode())


def session_cookie(token: str) -> str:
    """The cookie's value: proves that the token was known, without holding it."""
    return hmac.new(token.encode(), b"tfswa-sep session", hashlib.sha256).hexdigest()


def _is_allowed_host(host: str, options: ServeOptions) -> bool:
    """Whether a Host header is an IP address or a name of this server; a hostile site can only use its own name."""
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return False
    names: Collection[str] = {
        "localhost",
        options.host.lower(),
        *(each.lower() for each in options.allow_hosts),
    }
    if name in names:
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or not options.is_local
