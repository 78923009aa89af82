"""The server under the application: uvicorn, with patience for requests that come in slowly, and an end to it."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    import asyncio

    from fastapi import FastAPI

    from srm.serving.settings import ServerSettings

__all__ = ["make_server"]

# Seconds that an idle connection stays open: longer than a policy takes between two rounds of samples.
_KEEP_ALIVE = 120
# What a slow line carries in a second; a body may take that much longer than its headers.
_BYTES_PER_SECOND = 100_000
# Where many connect at once, none has sent its request yet: a connection as young as this is not closed to make room.
_YOUNG = 1.0
_TIMED_OUT = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


def make_server(app: FastAPI, settings: ServerSettings, *, drain_seconds: int | None = None) -> uvicorn.Server:
    """A server of `app`, to be run with a socket.

    Args:
        app: from `create_app`.
        settings: those of the application; `receive_seconds` and `max_half_sent` are for here.
        drain_seconds: on SIGTERM, how long to go on answering what has come; None for as long as it takes.
    """
    half_sent: dict[_Patient, None] = {}

    class Protocol(_Patient):
        def __init__(self, *arguments: Any, **more: Any) -> None:
            super().__init__(*arguments, **more)
            self.half_sent, self.settings = half_sent, settings

    # /metrics has what an access log would have, without a line a request. No route speaks WebSocket.
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=Protocol,
            ws="none",
            log_level="warning",
            access_log=False,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=drain_seconds,
        )
    )


class _Patient(H11Protocol):
    """A connection that ends when its request does not come in whole in time. uvicorn would wait for ever.

    half_sent: all connections that wait for the rest of a request, the one that has waited longest first.
    """

    half_sent: dict[_Patient, None]
    settings: ServerSettings
    _timer: asyncio.TimerHandle | None = None
    _since = 0.0
    _received = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_request()

    def data_received(self, data: bytes) -> None:
        if self._timer is None:
            self._wait_for_request()
        self._received += len(data)
        super().data_received(data)
        is_half_sent = self.conn.their_state is h11.SEND_BODY or (self.conn.their_state is h11.IDLE and self.conn.trailing_data[0])
        if not is_half_sent:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait_for_request(self) -> None:
        self._since, self._received = monotonic(), 0
        self._timer = self.loop.call_later(self.settings.receive_seconds, self._look)
        self.half_sent[self] = None
        oldest = next(iter(self.half_sent))
        if len(self.half_sent) > self.settings.max_half_sent and monotonic() - oldest._since > _YOUNG:
            oldest._give_up()

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            del self.half_sent[self]

    def _look(self) -> None:
        """Time is up, unless so much has come that it is longer now."""
        left = self._since + self.settings.receive_seconds + self._received / _BYTES_PER_SECOND - monotonic()
        if left > 0:
            self._timer = self.loop.call_later(left, self._look)
        else:
            self._give_up()

    def _give_up(self) -> None:
        self._stop_waiting()
        if not self.transport.is_closing():
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                self.transport.write(_TIMED_OUT)
            self.transport.close()
