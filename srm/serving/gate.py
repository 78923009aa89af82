"""What stands before the routes: the token, the limit on the body, and the count of requests and their time."""

from __future__ import annotations

import base64
import hmac
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from srm.serving.routes import REWARD_ROUTES

if TYPE_CHECKING:
    from srm.serving.metrics import Metrics

__all__ = ["Gate"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# Open without a token: they tell nothing about what is scored.
_OPEN = frozenset({"/health", "/docs", "/openapi.json"})
_ROUTES = frozenset({*REWARD_ROUTES, "/metrics", *_OPEN})


class Gate:
    """ASGI middleware. It refuses before a body is read, or as soon as it has grown too long.

    Args:
        app: what it stands before.
        tokens: requests must bring one of them; none asks for nothing.
        max_body_mb: largest body, in units of 1,000,000 bytes.
        metrics: counts requests and their time.
        paths: those it stands before; None for all.
    """

    def __init__(
        self,
        app: Callable[..., Awaitable[None]],
        *,
        tokens: Sequence[str],
        max_body_mb: float,
        metrics: Metrics,
        paths: Collection[str] | None = None,
    ) -> None:
        self._app = app
        self._tokens = tokens
        self._max_body = int(max_body_mb * 1e6)
        self._metrics = metrics
        self._paths = paths

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (self._paths is not None and scope["path"] not in self._paths):
            await self._app(scope, receive, send)
            return
        # Unknown paths are counted as one, or anyone could fill the memory with them.
        route = scope["path"] if scope["path"] in _ROUTES else "other"
        started = time.perf_counter()
        status = 500

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            refusal = self._refusal(scope)
            await (refusal or self._app)(scope, receive if refusal else self._limited(receive), watched_send)
        finally:
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.latency.labels(route).observe(time.perf_counter() - started)

    def _refusal(self, scope: MutableMapping[str, Any]) -> JSONResponse | None:
        headers = Headers(scope=scope)
        if self._tokens and scope["path"] not in _OPEN and not _is_allowed(headers.get("authorization", ""), self._tokens):
            return JSONResponse(
                {"detail": "missing or wrong token: send `Authorization: Bearer <token>`"}, 401, {"WWW-Authenticate": "Bearer"}
            )
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._max_body:
            # Its body stays unread, so the connection is of no more use.
            return JSONResponse({"detail": self._too_large()}, 413, {"Connection": "close"})
        return None

    def _limited(self, receive: Receive) -> Receive:
        seen = 0

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._max_body:
                raise HTTPException(413, self._too_large(), {"Connection": "close"})
            return message

        return limited

    def _too_large(self) -> str:
        return f"the body is larger than {self._max_body:,} bytes: send fewer rows in a request"


def _is_allowed(authorization: str, tokens: Sequence[str]) -> bool:
    """Whether the header brings a token, as a bearer or as the password of a URL, the only place where OpenRLHF can put it."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "basic":
        try:
            value = base64.b64decode(value, validate=True).decode("latin-1").partition(":")[2]
        except ValueError:  # no base64, or not even ASCII
            return False
    elif scheme.lower() != "bearer":
        return False
    return any(hmac.compare_digest(value.encode("latin-1"), token.encode()) for token in tokens)
