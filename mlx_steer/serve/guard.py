"""Who may ask, and how much: checked before a request's body is read.

Loopback servers are reachable from any page a browser shows, by way of DNS rebinding; so the Host
header must name this machine, bodies must be JSON (which a foreign page cannot send without being
asked first), and no cross-origin reading is allowed unless it was asked for.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_steer.serve.problems import Problem

LARGEST_BODY = 4 * 1024 * 1024
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
# What can be read without a key: that it lives, and the page that asks for the key.
_OPEN_PATHS = frozenset({"/", "/health"})


@dataclass(frozen=True)
class Access:
    """Who may ask.

    Attributes:
        api_key: What `Authorization: Bearer` must carry; None asks for none.
        hosts: Host names the server answers to, without the port; None answers to all.
        origins: Origins whose pages may read responses.
    """

    api_key: str | None = None
    hosts: frozenset[str] | None = _LOOPBACK
    origins: frozenset[str] = frozenset()

    @staticmethod
    def of(host: str, api_key: str | None, origins: Iterable[str] = ()) -> Access:
        """The rules for a server that listens at `host`."""
        return Access(api_key, _LOOPBACK if is_loopback(host) else None, frozenset(origins))


def is_loopback(host: str) -> bool:
    """Whether an address is reachable from this machine only."""
    return host in ("localhost", "::1") or host.startswith("127.")


class Guard:
    """ASGI middleware that lets through what `Access` allows.

    Args:
        app: The application behind it.
        access: The rules.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        """See the class."""
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the request, then hand it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin", "")
        send = self._with_headers(send, origin)
        problem = self._problem(scope, headers)
        if problem is not None:
            await JSONResponse(problem.body(), problem.status)(scope, receive, send)
        elif scope["method"] == "OPTIONS":
            await JSONResponse({}, 200)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _problem(self, scope: Scope, headers: Headers) -> Problem | None:
        hosts = self._access.hosts
        if hosts is not None and _name(headers.get("host", "")) not in hosts:
            return Problem(421, "this server answers to localhost only", "Host", "wrong_host")
        if scope["method"] == "OPTIONS":
            return None
        if not self._knows(headers.get("authorization", "")) and scope["path"] not in _OPEN_PATHS:
            return Problem(
                401, "the API key is missing or wrong; send Authorization: Bearer KEY", None,
                "invalid_api_key",
            )  # fmt: skip
        if scope["method"] != "POST":
            return None
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            return Problem(415, "the body must be JSON; send Content-Type: application/json")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:18]) > LARGEST_BODY:
            return Problem(413, f"the body is larger than {LARGEST_BODY} bytes; send less")
        return None

    def _knows(self, authorization: str) -> bool:
        if self._access.api_key is None:
            return True
        scheme, _, given = authorization.partition(" ")
        same = hmac.compare_digest(given.strip().encode(), self._access.api_key.encode())
        return scheme.lower() == "bearer" and same

    def _with_headers(self, send: Send, origin: str) -> Send:
        allowed = origin in self._access.origins or "*" in self._access.origins

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                more = [(b"x-content-type-options", b"nosniff")]
                if origin and allowed:
                    more += [
                        (b"access-control-allow-origin", origin.encode("latin-1")),
                        (b"access-control-allow-headers", b"authorization, content-type"),
                        (b"vary", b"origin"),
                    ]
                message = {**message, "headers": [*message.get("headers", ()), *more]}
            await send(message)

        return sent


def _name(host: str) -> str:
    """A Host header without its port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0].lower()
