"""The routes over real sockets: rewards, refusals, limits, numbers, and clients that leave."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server needs the extra `serve`")
pytest.importorskip("prometheus_client", reason="the server needs the extra `serve`")
pytest.importorskip("httpx", reason="the client needs the extra `serve`")

import httpx
from prometheus_client.parser import text_string_to_metric_families

from srm import AsyncClient, Client, SentenceRewardModel
from srm.data import Conversation
from srm.serving import ServerSettings, create_app
from tests.servers import wait_until

PROMPTS = ["Why is bread salty?", "Where does the cat sit?", [{"role": "user", "content": "Is it warm?"}]]
RESPONSES = ["It needs salt. Flour alone is dull.", "No, it is wrong! The cat sat on the mat.", "It was warm there."]


def numbers(scored: Any) -> list[float]:
    return [scored.reward, scored.prompt_reward, *(x for s in scored.sentences for x in (s.reward, s.weight, s.weighted_reward))]


def metrics(url: str) -> dict[tuple[str, ...], float]:
    """Every sample by its name and the values of its labels."""
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics").text)
    return {(sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}


def post(url: str, body: Any, path: str = "/v1/rewards", **more: Any) -> httpx.Response:
    return httpx.post(url + path, **({"json": body} if not isinstance(body, (str, bytes)) else {"content": body}), **more)


def test_rewards_are_those_of_the_model(serve: Callable[..., str], model: SentenceRewardModel):
    expected = model.score(PROMPTS, RESPONSES)
    with Client(serve()) as client:
        for got, want in zip(client.score(PROMPTS, RESPONSES), expected, strict=True):
            assert numbers(got) == pytest.approx(numbers(want), abs=1e-5)
            assert [(s.text, s.start, s.end) for s in got.sentences] == [(s.text, s.start, s.end) for s in want.sentences]
        nested = client.score(PROMPTS[:2], [RESPONSES[:2], [RESPONSES[2]]])
        assert [len(group) for group in nested] == [2, 1]
        assert nested[0][0].reward == pytest.approx(expected[0].reward, abs=1e-5)
        assert client.score([], []) == []


def test_ids_are_scored_as_they_are(serve: Callable[..., str], model: SentenceRewardModel):
    tokenizer = model.tokenizer
    prompts = [model.encoder.encode_prompt(prompt) for prompt in PROMPTS]
    responses = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in RESPONSES]
    # With an end and ids behind it, and without any text.
    responses[0] += [tokenizer.eos_token_id, 9, 9]
    responses[2] = [tokenizer.eos_token_id]
    want = model.score_tokens(prompts, responses)
    with Client(serve()) as client:
        got = client.score_tokens(prompts, responses)
        assert got.ends.tolist() == want.ends.tolist()
        assert got.cu_boundaries.tolist() == want.cu_boundaries.tolist()
        assert (got.lengths.tolist(), got.width) == (want.lengths.tolist(), want.width)
        for name in ("reward", "sentence_reward", "weight"):
            assert getattr(got, name).tolist() == pytest.approx(getattr(want, name).tolist(), abs=1e-5)
        assert got.spans.tolist() == want.spans.tolist()
        assert client.score_tokens([prompts[0]], [[]]).lengths.tolist() == [0]
        both = [{"prompt_ids": prompts[1], "response_ids": responses[1]}, {"prompt": PROMPTS[1], "response": RESPONSES[1]}]
        ids, text = post(str(client._http.base_url), {"rows": both}).json()["rewards"]
        assert ids["reward"] == pytest.approx(text["reward"], abs=1e-5)
        assert [s["end"] for s in ids["sentences"]] == [end + 1 for end in want.ends[4:6].tolist()]
        assert text["sentences"][1] | {"start": 17, "end": 40, "text": "The cat sat on the mat."} == text["sentences"][1]


def test_hundreds_of_distinct_requests_each_get_their_own_reward(serve: Callable[..., str], model: SentenceRewardModel):
    count = 250
    prompts = [f"Is {number // 8} right?" for number in range(count)]
    responses = [f"It is {number}. {number % 7} is wrong!" for number in range(count)]
    expected = model.score(prompts, responses)
    url = serve(tokens_per_batch=2048)

    async def ask() -> list[Any]:
        in_flight = asyncio.Semaphore(64)

        async def one(client: AsyncClient, index: int) -> Any:
            async with in_flight:
                return (await client.score([prompts[index]], [responses[index]]))[0]

        async with AsyncClient(url) as client:
            return await asyncio.gather(*(one(client, index) for index in range(count)))

    for got, want in zip(asyncio.run(ask()), expected, strict=True):
        assert numbers(got) == pytest.approx(numbers(want), abs=1e-5)
        assert [s.text for s in got.sentences] == [s.text for s in want.sentences]
    assert len({tuple(round(x, 4) for x in numbers(want)) for want in expected}) > 0.95 * count, "rewards that are alike prove little"
    seen = metrics(url)
    assert seen["srm_requests_total", "/v1/rewards", "200"] == count
    assert seen["srm_batch_rows_sum",] == count
    assert seen["srm_batch_rows_count",] < count, "nothing was batched"
    assert seen["srm_queue_rows",] == 0


def test_clients_that_leave_take_their_rows_with_them(serve, held, model):
    url = serve()
    host = url.removeprefix("http://")
    texts = [f"It is {number}." for number in range(12)]

    def send(text: str) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(host)
        body = json.dumps({"rows": [{"prompt": "Is it warm?", "response": text}]})
        connection.request("POST", "/v1/rewards", body, {"Content-Type": "application/json"})
        return connection

    connections = [send(texts[0])]
    wait_until(lambda: held.batches)
    connections += [send(text) for text in texts[1:]]
    wait_until(lambda: metrics(url)["srm_queue_rows",] == 11)
    # The first one's row runs already; the others wait.
    for connection in connections[0:12:2]:
        connection.close()
    wait_until(lambda: metrics(url)["srm_queue_rows",] == 6)
    held.release.set()
    for connection, text in list(zip(connections, texts, strict=True))[1:12:2]:
        answer = json.load(connection.getresponse())["rewards"][0]
        assert answer["reward"] == pytest.approx(model.score(["Is it warm?"], [text])[0].reward, abs=1e-5)
    assert sum(map(len, held.batches)) == 1 + 6
    seen = metrics(url)
    assert seen["srm_dropped_rows_total",] == 5
    assert seen["srm_requests_total", "/v1/rewards", "499"] == 6
    assert seen["srm_requests_total", "/v1/rewards", "200"] == 6


TEXT = {"prompt": "a", "response": "It is."}
BAD = [
    ("not json", 422, "Invalid JSON"),
    ("[" * 100_000, 422, "recursion limit"),
    ([], 422, "should be an object"),
    ({"row": []}, 422, '"rows"'),
    ({"rows": [TEXT, {"prompt": "a"}]}, 422, '["body", "rows", 1, "response"]'),
    ({"rows": [{"prompt": 5, "response": "b"}]}, 422, '"loc": ["body", "rows", 0, "prompt"], "msg": "Input should be a string or a list'),
    ({"rows": [{"prompt": [5], "response": "b"}]}, 422, '"loc": ["body", "rows", 0, "prompt", 0]'),
    ({"rows": [{"prompt_ids": ["5"], "response_ids": [1]}]}, 422, '["body", "rows", 0, "prompt_ids", 0]'),
    ({"rows": [{"prompt_ids": [1], "response_ids": [True]}]}, 422, "valid integer"),
    ({"rows": [{"prompt_ids": [1], "response_ids": [5.0]}]}, 422, "valid integer"),
    ({"rows": [{**TEXT, "respones": "b"}]}, 422, "respones"),
    ({"rows": [{**TEXT, "prompt_ids": [1]}]}, 422, "response_ids"),
    ({"rows": [TEXT, {"prompt": "a", "response": "\x07" * 9}]}, 200, "rewards"),
    ({"rows": [TEXT, {"prompt": [{"role": "alien", "content": "a"}], "response": "b"}]}, 422, "unknown role 'alien'"),
    ({"rows": [{"prompt": [], "response": "b"}]}, 422, "empty list"),
    ('{"rows": [{"prompt": "\\ud800", "response": "b"}]}', 422, "hex escape"),
    ('{"rows": [{"prompt": [{"role": "user", "content": "\\ud800"}], "response": "b"}]}', 422, "hex escape"),
    ('{"rows": [{"prompt": "a", "response": "b", "\\ud800": 1}]}', 422, "hex escape"),
    ('{"\\udfff": 1}', 422, "hex escape"),
    ('{"rows": [{"prompt": [{"role": "user", "content": "a", "\\ud800": 1}], "response": "b"}]}', 422, "hex escape"),
    ('{"rows": [{"prompt": [{"role": "user", "content": "a", "x": {"\\ud800": 1}}], "response": "b"}]}', 422, "hex escape"),
    (
        '{"rows": [{"prompt": [{"role": "user", "content": "a", "x": ' + "[" * 900 + "]" * 900 + '}], "response": "b"}]}',
        422,
        "recursion limit",
    ),
    ('{"rows": [{"prompt": [{"role": "\\ud800", "content": "a"}], "response": "b"}]}', 422, "hex escape"),
    ('{"rows": [{"prompt": [{"\\ud800": "user", "content": "a"}], "response": "b"}]}', 422, "hex escape"),
    ('{"rows": [' + "[]," * 5000 + "[]]}", 422, "rows"),
    ('{"rows": [{"prompt_ids": [1], "response_ids": [' + "-1," * 5000 + "1]}]}", 422, "response_ids"),
    ({"rows": [{"prompt_ids": [1] * 300, "response_ids": [1]}]}, 422, "at most 256"),
    ({"rows": [{"prompt_ids": [1], "response_ids": [5] * 5000}]}, 422, "at most 256"),
    ({"rows": [{"prompt": [{"role": "user"}], "response": "b"}]}, 422, "string `content`"),
    ({"rows": [{"prompt": "a", "response": "It is warm. " * 200}]}, 422, '["body", "rows", 0]'),
    ({"rows": [{"prompt": "a", "response": "It is warm. " * 200}]}, 422, "at most 256"),
    ({"rows": [{"prompt_ids": [], "response_ids": [1]}]}, 422, "prompt_ids"),
    ({"rows": [{"prompt_ids": [1], "response_ids": [1, -1]}]}, 422, "response_ids"),
    ({"rows": [{"prompt_ids": [1], "response_ids": [1, 100_000]}]}, 422, "the id 100000 is unknown"),
    ({"rows": [{"prompt_ids": [1], "response_ids": [10**30]}]}, 422, "response_ids"),
    ({"rows": [TEXT] * 11}, 422, "queues at most 10"),
    ({"rows": [{"prompt": "a", "response": "b" * 30_000}]}, 413, "larger than 20,000 bytes"),
]


def test_bad_requests_are_refused_and_the_server_goes_on(serve: Callable[..., str], model: SentenceRewardModel):
    url = serve(max_body_mb=0.02, max_queue=10)
    json_type = {"headers": {"Content-Type": "application/json"}}
    for body, status, words in BAD:
        if isinstance(body, str) and len(body) > 20_000:
            body = body[:19_000]
        answer = post(url, body, **json_type)
        assert (answer.status_code, words in answer.text) == (status, True), (body, answer.status_code, answer.text)
    assert post(url, {"query": ["ab"], "prompts": []}, "/get_reward").json()["detail"][0]["loc"] == ["body", "query"]
    assert post(url, {"query": "ab", "prompts": ["b"]}, "/get_reward").status_code == 422
    for headers in ({}, {"Content-Type": "application/x-www-form-urlencoded"}):
        answer = httpx.post(f"{url}/v1/rewards", content=json.dumps({"rows": [TEXT]}).encode(), headers=headers)
        assert answer.status_code == 422
        assert "send Content-Type: application/json" in answer.json()["detail"][0]["msg"]
        assert TEXT["response"] not in answer.text
    # Without its length told beforehand.
    chunks = (b"x" * 1000 for _ in range(100))
    assert httpx.post(f"{url}/v1/rewards", content=chunks, **json_type).status_code == 413
    assert httpx.get(f"{url}/v1/rewards").status_code == 405
    assert httpx.get(f"{url}/elsewhere").status_code == 404
    with Client(url) as client:
        assert client.score(["a"], ["It is."])[0].reward == pytest.approx(model.score(["a"], ["It is."])[0].reward, abs=1e-5)
    seen = metrics(url)
    assert seen["srm_requests_total", "/v1/rewards", "422"] == 2 + sum(status == 422 for _, status, _ in BAD)
    assert seen["srm_requests_total", "/v1/rewards", "413"] == 2
    assert seen["srm_requests_total", "other", "404"] == 1
    assert not any("elsewhere" in key for key in seen)


def test_a_shorter_limit_of_its_own(serve: Callable[..., str]):
    body = {"rows": [{"prompt": "a", "response": "It is warm. " * 20}]}
    assert "at most 30" in post(serve(max_length=30), body).text
    assert post(serve(), body).status_code == 200


def test_a_full_queue_answers_503(serve, held):
    url = serve(max_queue=2)

    async def ask() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            waiting = [asyncio.create_task(client.post("/v1/rewards", json={"rows": [TEXT]}))]
            while not held.batches:
                await asyncio.sleep(0.01)
            waiting.append(asyncio.create_task(client.post("/v1/rewards", json={"rows": [TEXT, TEXT]})))
            while metrics(url)["srm_queue_rows",] < 2:
                await asyncio.sleep(0.01)
            refused = await client.post("/get_reward", json={"query": ["ab"], "prompts": ["a"]})
            assert refused.status_code == 503
            assert int(refused.headers["Retry-After"]) >= 1
            assert (await client.get("/health")).status_code == 200
            held.release.set()
            assert [(await answer).status_code for answer in waiting] == [200, 200]
            assert (await client.post("/get_reward", json={"query": ["ab"], "prompts": ["a"]})).status_code == 200

    asyncio.run(ask())
    assert metrics(url)["srm_requests_total", "/get_reward", "503"] == 1


def test_the_token(serve: Callable[..., str]):
    url = serve(token="secret")
    rows = {"rows": [TEXT]}
    openrlhf = {"query": ["ab"], "prompts": ["a"], "labels": [""]}
    wrong = (
        b"Bearer secre",
        b"secret",
        b"Basic !",
        b"Basic \xe9",
        b"Bearer \xe9",
        b"Basic",
        b"Bearer",
        b"Basic 4pyT",
        b"Basic /////w==",
        b"\xff",
    )
    for header in ({}, *({"Authorization": value} for value in wrong)):
        assert post(url, rows, headers=header).status_code == 401
        assert post(url, openrlhf, "/get_reward", headers=header).status_code == 401
        assert httpx.get(f"{url}/metrics", headers=header).status_code == 401
    assert httpx.get(f"{url}/health").json()["status"] == "ok"
    assert httpx.get(f"{url}/metrics", headers={"Authorization": "Bearer secret"}).status_code == 200
    # All that OpenRLHF lets its user say is an address.
    assert post(url.replace("//", "//openrlhf:secret@"), openrlhf, "/get_reward").status_code == 200
    assert post(url.replace("//", "//openrlhf:wrong@"), openrlhf, "/get_reward").status_code == 401
    with Client(url, token="secret") as client:
        assert len(client.score(["a"], ["It is."])) == 1


def test_errors_of_the_model_are_500_and_counted(serve, monkeypatch):
    def fails(*arguments: Any, **more: Any) -> Any:
        raise RuntimeError("no memory left")

    monkeypatch.setattr("srm.serving.app.score_all", fails)
    url = serve()
    for _ in range(2):
        answer = post(url, {"rows": [TEXT]})
        assert (answer.status_code, "server's log" in answer.text) == (500, True)
    assert metrics(url)["srm_model_errors_total",] == 2


def test_a_reward_that_is_no_number_is_an_error(serve, model):
    bias = model.head.value.bias
    before = bias.detach().clone()
    try:
        bias.data.fill_(float("nan"))
        answer = post(serve(), {"rows": [TEXT]})
    finally:
        bias.data.copy_(before)
    assert (answer.status_code, "reward is nan" in answer.text) == (500, True)


def test_latency_and_tokens_are_measured(serve: Callable[..., str], model: SentenceRewardModel):
    url = serve()
    with Client(url) as client:
        client.score([PROMPTS[0]] * 3, RESPONSES)
    seen = metrics(url)
    responses = sum(len(one.ids) for one in model.encoder.encode_responses(RESPONSES))
    assert seen["srm_batch_tokens_sum",] == len(model.encoder.encode_prompt(PROMPTS[0])) + responses
    assert seen["srm_batch_rows_sum",] == 3
    assert seen["srm_request_seconds_count", "/v1/rewards"] == 1
    assert seen["srm_request_seconds_sum", "/v1/rewards"] > 0
    assert seen["srm_batch_seconds_sum",] > 0


def test_examples_of_the_documentation_are_answered(serve: Callable[..., str]):
    url = serve()
    document = httpx.get(f"{url}/openapi.json").json()
    assert httpx.get(f"{url}/docs").status_code == 200
    tried = 0
    for path in ("/v1/rewards", "/get_reward"):
        operation = document["paths"][path]["post"]
        assert {"200", "401", "413", "422", "503"} <= operation["responses"].keys()
        name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[-1]
        for example in document["components"]["schemas"][name]["examples"]:
            answer = post(url, example, path)
            assert answer.status_code == 200, answer.text
            assert len(answer.json()["rewards"]) == len(example.get("rows", example.get("query")))
            tried += 1
    assert tried == 4


def test_settings_are_checked(model: SentenceRewardModel):
    from srm import UserError

    for bad in ({"max_queue": 0}, {"tokens_per_batch": -1}, {"max_length": 0}, {"max_body_mb": 0}, {"max_wait_ms": -1}, {"token": ""}):
        with pytest.raises(UserError):
            create_app(model, ServerSettings(**bad))


def test_responses_of_messages(serve: Callable[..., str], model: SentenceRewardModel) -> None:
    user, more = ({"role": "user", "content": text} for text in ("Is it warm?", "And now?"))
    first, last = ({"role": "assistant", "content": text} for text in ("It is. Very.", "It was."))
    with Client(serve()) as client:
        got = client.score([[user], [user], [user, first]], [[first, more, last], [first], " Or not."])
        want = model.score([[user], [user], [user, first]], [[first, more, last], [first], " Or not."])
        for mine, theirs in zip(got, want, strict=True):
            assert [(s.text, s.start, s.end) for s in mine.sentences] == [(s.text, s.start, s.end) for s in theirs.sentences]
            assert mine.reward == pytest.approx(theirs.reward, abs=1e-5)
        ((one, other),) = client.score([[user]], [[[first, more, last], [first]]])
        assert (one.reward, other.reward) == pytest.approx((got[0].reward, got[1].reward), abs=1e-5)
        for response, problem in (
            ([first, more], "ends with a message of the role user"),
            ([], "empty list"),
            ([{"role": "x"}], "unknown role"),
        ):
            row = {"prompt": "Hi", "response": response}
            answer = httpx.post(f"{client._http.base_url}/v1/rewards", json={"rows": [row]})
            assert answer.status_code == 422
            (detail,) = answer.json()["detail"]
            assert detail["loc"] == ["body", "rows", 0, "response"]
            assert problem in detail["msg"]


def test_tools_and_settings_of_the_template_come_along(serve: Callable[..., str], model: SentenceRewardModel):
    """The tiny template writes no tools, which is said rather than left out in silence."""
    with Client(serve()) as client:
        user = [{"role": "user", "content": "Is it warm?"}]
        got = client.score([Conversation(user, enable_thinking=False)], ["It is."])
        assert got[0].reward == pytest.approx(model.score([user], ["It is."])[0].reward, abs=1e-5)
        tool = {"type": "function", "function": {"name": "weather"}}
        with pytest.raises(Exception, match="the chat template does not write `tools`"):
            client.score([Conversation(user, tools=[tool])], ["It is."])
