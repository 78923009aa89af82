"""What clients do with each kind of answer; the servers here are scripts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("httpx", reason="the client needs the extra `serve`")

import httpx

from srm import AsyncClient, Client, UserError
from srm.client import RequestRefused, ServerUnavailable

SENTENCE = {"text": "It is.", "start": 0, "end": 6, "reward": 0.5, "weight": 0.5, "weighted_reward": 0.25}
GOOD = {"rewards": [{"reward": 0.25, "prompt_reward": 0.0, "prompt_weight": 0.5, "sentences": [SENTENCE]}]}

Score = Callable[..., Any]


@pytest.fixture(params=["blocking", "asyncio"])
def score(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Score:
    """score(handler, **settings): asks a server that answers as `handler` does; returns the scores and the waits between attempts."""
    waits: list[float] = []

    async def no_sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("srm.client.sleep", waits.append)
    monkeypatch.setattr("srm.client.asyncio.sleep", no_sleep)

    def ask(handler: Callable[[httpx.Request], httpx.Response], **settings: Any) -> Any:
        transport = httpx.MockTransport(handler)
        if request.param == "blocking":
            with Client("http://server", **settings) as client:
                client._http = httpx.Client(transport=transport, base_url="http://server", headers=client._http.headers)
                return client.score(["a"], ["It is."]), waits

        async def main() -> Any:
            async with AsyncClient("http://server", **settings) as client:
                client._http = httpx.AsyncClient(transport=transport, base_url="http://server", headers=client._http.headers)
                return await client.score(["a"], ["It is."])

        return asyncio.run(main()), waits

    return ask


def script(*answers: httpx.Response | Exception) -> Callable[[httpx.Request], httpx.Response]:
    rest = iter(answers)

    def handler(request: httpx.Request) -> httpx.Response:
        answer = next(rest)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return handler


def test_busy_and_unreachable_servers_are_asked_again(score: Score):
    busy = httpx.Response(503, headers={"Retry-After": "7"}, json={"detail": "full"})
    handler = script(
        busy, httpx.ConnectError("refused"), httpx.RemoteProtocolError("gone"), httpx.Response(503), httpx.Response(200, json=GOOD)
    )
    scored, waits = score(handler)
    assert scored[0].reward == 0.25
    assert scored[0].sentences[0].text == "It is."
    assert waits == [7.0, 0.25, 0.5, 1.0]


def test_patience_begins_with_the_first_failure(score: Score, monkeypatch: pytest.MonkeyPatch):
    answers = script(httpx.ConnectError("refused"), httpx.Response(200, json=GOOD))
    now = [0.0]
    monkeypatch.setattr("srm.client.monotonic", lambda: now[0])

    def slow(request: httpx.Request) -> httpx.Response:
        now[0] += 100.0
        return answers(request)

    assert score(slow, retry_seconds=5)[0][0].reward == 0.25


def test_patience_ends(score: Score):
    with pytest.raises(ServerUnavailable, match="is too busy, and trying for 5 s did not help"):
        score(script(httpx.Response(503, headers={"Retry-After": "6"})), retry_seconds=5)
    with pytest.raises(ServerUnavailable, match=r"cannot be reached \(refused\)"):
        score(script(*[httpx.ConnectError("refused")] * 9), retry_seconds=3)


@pytest.mark.parametrize(
    ("status", "body", "error", "message"),
    [
        (401, {"detail": "missing or wrong token"}, RequestRefused, "answered 401: missing or wrong token"),
        (422, {"detail": [{"loc": ["body", "rows", 3], "msg": "too long"}]}, RequestRefused, "answered 422: `rows.3`: too long"),
        (404, "no such page", RequestRefused, "answered 404: .*no such page"),
        (500, {"detail": "the model raised an error"}, ServerUnavailable, "failed with 500: the model raised an error"),
    ],
)
def test_what_cannot_be_helped_is_raised_at_once(score: Score, status: int, body: Any, error: type[UserError], message: str):
    with pytest.raises(error, match=message) as raised:
        score(script(httpx.Response(status, json=body)))
    assert isinstance(raised.value, UserError)
    if error is RequestRefused:
        assert raised.value.status == status


def test_a_slow_answer_is_not_asked_for_again(score: Score):
    with pytest.raises(ServerUnavailable, match=r"ReadTimeout slow\. Is `timeout` long enough"):
        score(script(httpx.ReadTimeout("slow")))


def test_the_token_and_the_body_are_sent(score: Score):
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json=GOOD)

    score(handler, token="secret")
    assert seen[0].headers["authorization"] == "Bearer secret"
    assert seen[0].url == "http://server/v1/rewards"
    assert seen[0].read() == b'{"rows":[{"prompt":"a","response":"It is."}]}'


def test_arguments_are_checked():
    with pytest.raises(UserError, match="must begin with http"):
        Client("localhost:8000")
    with Client("http://server") as client:
        for prompts, responses in (("a", ["b"]), (["a"], "b"), (["a"], ["b", "c"]), (["a", "b"], ["c", ["d"]])):
            with pytest.raises(ValueError, match="Client"):
                client.score(prompts, responses)
        with pytest.raises(ValueError, match="2 prompts and 1 responses"):
            client.score_tokens([[1], [2]], [[3]])
