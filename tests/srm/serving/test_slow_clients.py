"""Requests that never come in whole, a few bytes at a time, and many of them."""

from __future__ import annotations

import http.client
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

pytest.importorskip("fastapi", reason="the server needs the extra `serve`")
pytest.importorskip("prometheus_client", reason="the server needs the extra `serve`")
pytest.importorskip("httpx", reason="the client needs the extra `serve`")

import httpx

from srm import Client

BODY = b'{"rows": [{"prompt": "Is it?", "response": "It is."}]}'
HEADERS = b"POST /v1/rewards HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(BODY)


@contextmanager
def connection(url: str, data: bytes) -> Iterator[socket.socket]:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as one:
        one.sendall(data)
        yield one


def until_closed(one: socket.socket) -> bytes:
    """What the server says before it hangs up."""
    said = b""
    try:
        while part := one.recv(4096):
            said += part
    except ConnectionResetError:
        pass
    return said


def status_of(one: socket.socket) -> int:
    answer = http.client.HTTPResponse(one)
    answer.begin()
    answer.read()
    return answer.status


@pytest.mark.parametrize("sent", [b"", b"POST /v1/rew", HEADERS[:-2], HEADERS, HEADERS + BODY[:-1]])
def test_half_a_request_is_given_up(serve: Callable[..., str], sent: bytes):
    url = serve(receive_seconds=0.3)
    started = time.monotonic()
    with connection(url, sent) as one:
        assert until_closed(one).startswith(b"HTTP/1.1 408 ")
    assert 0.2 < time.monotonic() - started < 5
    assert httpx.get(f"{url}/metrics").text.count("srm_queue_rows 0.0") == 1


def test_a_byte_now_and_then_does_not_help(serve: Callable[..., str]):
    url = serve(receive_seconds=0.3)
    started = time.monotonic()
    with connection(url, HEADERS) as one:
        one.settimeout(0.02)
        said = None
        for byte in range(len(BODY) - 1):
            one.sendall(BODY[byte : byte + 1])
            try:
                said = one.recv(4096)
                break
            except TimeoutError:
                continue
    assert said is not None
    assert said.startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - started < 5


def test_requests_that_were_refused_are_given_up_too(serve: Callable[..., str]):
    url = serve(receive_seconds=0.3, token="secret")
    with connection(url, HEADERS + BODY[:10]) as one:
        said = until_closed(one)
    assert said.startswith(b"HTTP/1.1 401 ")
    assert b"408" not in said


def test_whole_requests_may_take_longer_and_idle_connections_stay(serve: Callable[..., str], held):
    url = serve(receive_seconds=0.2)
    with connection(url, HEADERS + BODY) as one:
        time.sleep(0.6)
        held.release.set()
        assert status_of(one) == 200
        time.sleep(0.6)
        one.sendall(HEADERS)
        one.sendall(BODY)
        assert status_of(one) == 200


def test_half_sent_requests_have_a_limit_and_others_are_answered(serve: Callable[..., str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("srm.serving.server._YOUNG", 0.0)
    url = serve(max_half_sent=5, receive_seconds=60)
    with ExitStack() as held:
        waiting = []
        for _ in range(12):
            waiting.append(held.enter_context(connection(url, HEADERS)))
            time.sleep(0.02)
        # The oldest ones have to go.
        assert all(until_closed(one).startswith(b"HTTP/1.1 408 ") for one in waiting[:7])
        assert not select.select(waiting[7:], [], [], 0.1)[0]
        with Client(url) as client:
            assert len(client.score(["Is it?"], ["It is."])) == 1
