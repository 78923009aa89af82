"""Odd bodies to a running server: an answer of its own for every row, or 4xx, and never anything else."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import strategies as st

from srm import SentenceRewardModel
from srm.errors import UserError
from tests.fuzz.harness import figures, fuzz, watched, wrong
from tests.fuzz.strategies import anything, number, plain, prompt, text
from tests.servers import in_thread

pytest.importorskip("fastapi", reason="the server needs the extra `serve`")
pytest.importorskip("prometheus_client", reason="the server needs the extra `serve`")
httpx = pytest.importorskip("httpx")

token_ids = st.one_of(st.lists(st.integers(0, 300), max_size=30), st.lists(number, max_size=4), anything)
row = st.one_of(
    st.fixed_dictionaries({"prompt": plain, "response": text}),
    st.fixed_dictionaries({"prompt": prompt, "response": st.one_of(text, anything)}, optional={"tools": anything, "x": anything}),
    st.fixed_dictionaries({"prompt_ids": token_ids, "response_ids": token_ids}),
    anything,
)
rewards = st.one_of(
    st.fixed_dictionaries({"rows": st.lists(st.fixed_dictionaries({"prompt": plain, "response": text}), min_size=1, max_size=3)}),
    st.fixed_dictionaries({"rows": st.lists(row, max_size=3)}, optional={"x": anything}),
    anything,
)
texts = st.lists(text, max_size=3)
openrlhf = st.one_of(st.fixed_dictionaries({"query": texts, "prompts": texts}, optional={"labels": anything}), anything)
body = st.one_of(
    st.tuples(st.just("/v1/rewards"), rewards.map(json.dumps)),
    st.tuples(st.just("/v1/rewards"), rewards.map(lambda drawn: json.dumps(drawn, ensure_ascii=False))),
    st.tuples(st.just("/get_reward"), openrlhf.map(json.dumps)),
    st.tuples(st.sampled_from(["/v1/rewards", "/get_reward"]), st.one_of(st.binary(max_size=40), st.just('{"rows":' * 3000))),
)


@pytest.fixture
def url(loaded: SentenceRewardModel) -> Iterator[str]:
    with in_thread(loaded) as address:
        yield address


@fuzz(examples=200, weight=3, asked=body)
def test_requests(asked: tuple[str, str | bytes], loaded: SentenceRewardModel, url: str) -> None:
    path, content = asked
    raw = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    with watched():
        answer = httpx.post(url + path, content=raw, headers={"Content-Type": "application/json"}, timeout=15)
    figures[f"http {answer.status_code}"] += 1
    assert answer.status_code in (200, 413, 422), (answer.status_code, answer.text[:500], raw[:500])
    found = json.loads(answer.text, parse_constant=lambda name: wrong(f"{name} is no JSON"))
    if answer.status_code == 200:
        check_answer(path, json.loads(raw), found, loaded)


def check_answer(path: str, asked: dict[str, Any], found: dict[str, Any], model: SentenceRewardModel) -> None:
    """A number for each row, and for text the one that the row gets alone."""
    number_of_rows = len(asked["rows"] if path == "/v1/rewards" else asked["query"])
    if len(found["rewards"]) != number_of_rows:
        raise wrong(f"{len(found['rewards'])} rewards for {number_of_rows} rows")
    for given, scored in zip(asked.get("rows", []), found["rewards"], strict=path == "/v1/rewards"):
        if not isinstance(given.get("prompt"), str) or given.keys() != {"prompt", "response"} or not given["response"].strip():
            continue
        try:
            alone = model.score([given["prompt"]], [given["response"]], packing="none")[0]
        except UserError:
            # An end token alone is no text: the server gives it the prompt's reward, as it does to a policy that ends at once.
            if scored["sentences"]:
                raise wrong(f"{given}: refused alone, scored by the server") from None
            continue
        figures["rows scored"] += 1
        if not math.isclose(scored["reward"], alone.reward, rel_tol=1e-3, abs_tol=1e-4):  # type: ignore[union-attr]
            raise wrong(f"{given}: reward {scored['reward']}, alone {alone.reward}")  # type: ignore[union-attr]
