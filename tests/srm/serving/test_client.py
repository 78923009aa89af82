"""What clients do with each kind of answer; the servers here are scripts."""

from __future__ import annotations

import asyncio
import base64
import copy
import json
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("httpx", reason="the client needs the extra `serve`")

import httpx

from srm import AsyncClient, Client, UserError
from srm.client import RequestRefused, ServerError, ServerUnavailable, _ids_rows

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
    # Not `asyncio.sleep` itself: servers of other tests run in this process too.
    monkeypatch.setattr("srm.client.asyncio", SimpleNamespace(sleep=no_sleep))

    def ask(handler: Callable[[httpx.Request], httpx.Response], url: str = "http://server", **settings: Any) -> Any:
        transport = httpx.MockTransport(handler)
        if request.param == "blocking":
            with Client(url, **settings) as client:
                client._http = httpx.Client(transport=transport, base_url=client._http.base_url, headers=client._http.headers)
                return client.score(["a"], ["It is."]), waits

        async def main() -> Any:
            async with AsyncClient(url, **settings) as client:
                client._http = httpx.AsyncClient(transport=transport, base_url=client._http.base_url, headers=client._http.headers)
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
        *(busy, httpx.ConnectError("refused"), httpx.ConnectTimeout("nobody"), httpx.RemoteProtocolError("gone")),
        *(httpx.Response(503), httpx.Response(200, json=GOOD)),
    )
    scored, waits = score(handler)
    assert scored[0].reward == 0.25
    assert scored[0].sentences[0].text == "It is."
    assert waits == [7.0, 0.25, 0.5, 1.0, 2.0]


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
        (404, "no such page", ServerError, "has no /v1/rewards.* start vLLM with VLLM_PLUGINS=srm"),
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


def changed(*path: Any, to: Any) -> dict[str, Any]:
    """The good answer with one thing in it replaced, or taken out where `to` is Ellipsis."""
    answer: Any = copy.deepcopy(GOOD)
    place = answer
    for step in path[:-1]:
        place = place[step]
    if to is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    return answer


FIRST, IN_SENTENCE = ("rewards", 0), ("rewards", 0, "sentences", 0)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("<html>Sign in</html>", "is no srm-serve: its answer has no `rewards`, it begins with '<html>Sign in</html>'"),
        ("", "it is empty"),
        ("{}", "has no `rewards`"),
        ("null", "has no `rewards`"),
        ("[]", "has no `rewards`"),
        ("7", "has no `rewards`"),
        ("[" * 100_000, "has no `rewards`"),
        (json.dumps(GOOD)[:-9], "has no `rewards`"),
        (b"\xff\xfe\x00", "has no `rewards`"),
        ({"rewards": []}, "answered 1 rows with 0 rewards"),
        ({"rewards": GOOD["rewards"] * 2}, "answered 1 rows with 2 rewards"),
        ({"rewards": {"0": 1}}, "answered 1 rows with dict"),
        ({"rewards": None}, "answered 1 rows with NoneType"),
        ({"rewards": [0.5]}, "answered row 0 with no list of sentences"),
        (changed(*FIRST, "sentences", to=...), "no list of sentences"),
        (changed(*FIRST, "sentences", to="ab"), "no list of sentences"),
        (changed(*FIRST, "sentences", to=[1]), "a sentence 0 that is no object"),
        *((changed(*FIRST, "reward", to=value), "`reward` .* no finite number") for value in (..., None, "0.5", True, [1], 10**400)),
        ('{"rewards": [{"reward": NaN, "prompt_reward": 0, "prompt_weight": 0, "sentences": []}]}', "`reward` 'nan'"),
        ('{"rewards": [{"reward": 0, "prompt_reward": -Infinity, "prompt_weight": 0, "sentences": []}]}', "`prompt_reward` '-inf'"),
        ('{"rewards": [{"reward": 1e999, "prompt_reward": 0, "prompt_weight": 0, "sentences": []}]}', "`reward` 'inf'"),
        (changed(*FIRST, "prompt_weight", to=...), "`prompt_weight`"),
        *((changed(*IN_SENTENCE, name, to=None), f"a sentence 0 with `{name}`") for name in ("reward", "weight", "weighted_reward")),
        *((changed(*IN_SENTENCE, "end", to=value), "a sentence 0 at 0:") for value in (7, -1, "6", 6.0, True, None, ...)),
        (changed(*IN_SENTENCE, "start", to=-1), "a sentence 0 at -1:6"),
        (changed(*IN_SENTENCE, "text", to="It was"), "a sentence 0 whose text is not in the response there"),
    ],
)
def test_answers_that_are_no_rewards(score: Score, body: Any, message: str):
    answer = httpx.Response(200, json=body) if isinstance(body, dict) else httpx.Response(200, content=body)
    with pytest.raises(ServerError, match=message) as raised:
        score(script(answer))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (302, {"Location": "https://me:hidden@proxy/login"}, r"answered 302 and sends on to https://\*\*\*@proxy/login: give"),
        (304, {}, "answered 304, which is no answer"),
        (204, {}, "answered 204, which is no answer"),
        (200, {"Content-Encoding": "gzip"}, "DecodingError"),
    ],
)
def test_answers_that_are_none(score: Score, status: int, headers: dict[str, str], message: str):
    class Body(httpx.SyncByteStream, httpx.AsyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield b"no gzip"

        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"no gzip"

    with pytest.raises(ServerError, match=message):
        score(script(httpx.Response(status, headers=headers, stream=Body())))


@pytest.mark.parametrize("body", ["[1]", '{"detail": ["a"]}', '{"detail": [{"loc": 1}]}', '{"detail": null}', "<p>" * 9999, "", "\xff"])
def test_refusals_of_any_form_are_one_error(score: Score, body: str):
    with pytest.raises(RequestRefused, match="answered 422") as raised:
        score(script(httpx.Response(422, content=body)))
    assert len(str(raised.value)) < 600


def test_what_a_newer_server_adds_is_ignored(score: Score):
    answer = changed(*IN_SENTENCE, "colour", to="red") | {"version": 2}
    assert score(script(httpx.Response(200, json=answer)))[0][0].sentences[0].text == "It is."


def test_rows_that_are_no_json_are_named():
    with Client("http://server") as client:
        for prompt in ("\ud800", [{"role": "user", "content": float("nan")}], [{"role": "user", "content": object()}]):
            with pytest.raises(UserError, match="row 1 cannot be written as JSON"):
                client.score(["a", prompt], ["b", "c"])


def test_ids_may_be_arrays():
    numpy = pytest.importorskip("numpy")
    rows = _ids_rows(numpy.array([[1, 2]]), numpy.array([[3]], dtype=numpy.int32))
    assert json.dumps(rows) == '[{"prompt_ids": [1, 2], "response_ids": [3]}]'


def test_the_password_of_an_address_is_sent_and_never_shown(score: Score, caplog: pytest.LogCaptureFixture):
    caplog.set_level("DEBUG")
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json=GOOD)

    url = "http://me:s%40fe@server"
    score(handler, url=url)
    assert base64.b64decode(seen[0].headers["authorization"].removeprefix("Basic ")) == b"me:s@fe"
    shown = [caplog.text, str(seen[0].url), repr(Client(url)), repr(vars(Client(url)))]
    for answer in (httpx.Response(401), httpx.Response(500), httpx.Response(200), httpx.ReadTimeout("slow")):
        with pytest.raises(UserError) as raised:
            score(script(answer), url=url)
        shown.append(str(raised.value))
    for bad in (
        "ftp://me:s@fe@server",
        "me:s@fe@server",
        "http://me:1/s@fe@server",
        "http://me:s/fe@ser ver",
        "http://me:s%40fe@server:port",
        "http://me:s@fe@",
    ):
        with pytest.raises(UserError, match="must begin with http") as raised:
            Client(bad)
        shown.append(str(raised.value))
    for text in shown:
        assert "fe@" not in text.replace("***@", "")
        assert "s%40fe" not in text
        assert "s@fe" not in text
    for token in ("sécret", "sec\nret", "", " secret"):
        with pytest.raises(UserError, match="the token must be printable") as raised:
            Client("http://server", token=token)
        assert "cret" not in str(raised.value)


def test_arguments_are_checked():
    with pytest.raises(UserError, match="must begin with http"):
        Client("localhost:8000")
    with Client("http://server") as client:
        for prompts, responses in (("a", ["b"]), (["a"], "b"), (["a"], ["b", "c"]), (["a", "b"], ["c", ["d"]])):
            with pytest.raises(ValueError, match="Client"):
                client.score(prompts, responses)
        with pytest.raises(ValueError, match="2 prompts and 1 responses"):
            client.score_tokens([[1], [2]], [[3]])


@pytest.mark.parametrize("token", [5.7, "5", True])
def test_ids_that_are_no_integers_are_not_sent(token: object) -> None:
    with (
        Client("http://localhost:9") as client,
        pytest.raises(UserError, match=r"Client.score_tokens: `response_ids`: row 0 must hold integers"),
    ):
        client.score_tokens([[1]], [[token]])  # type: ignore[list-item]
