"""OpenRLHF's remote reward request, sent as its single-turn executor and its older wrapper send it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server needs the extra `serve`")
pytest.importorskip("prometheus_client", reason="the server needs the extra `serve`")
pytest.importorskip("httpx", reason="the client needs the extra `serve`")

import httpx

from srm import SentenceRewardModel

PROMPTS = [f"Is {number} right?" for number in range(6)]
RESPONSES = [f"It is {number}. No, it is wrong!" for number in range(6)]


def samples(model: SentenceRewardModel) -> list[dict[str, list[Any]]]:
    """One request a sample. The query is decoded from what the engine saw: the prompt's ids, the answer's and the end token's."""
    tokenizer = model.tokenizer
    made = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        templated = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)
        prompt_ids = tokenizer(templated, add_special_tokens=False, return_tensors="pt")["input_ids"][0].tolist()
        action_ids = [*tokenizer(response, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        query = tokenizer.decode(prompt_ids + action_ids, skip_special_tokens=False)
        made.append({"query": [query], "prompts": [templated], "labels": [None]})
    return made


def test_one_sample_each_many_at_once(serve: Callable[..., str], model: SentenceRewardModel):
    url = serve() + "/get_reward"
    expected = [scored.reward for scored in model.score(PROMPTS, RESPONSES)]

    async def ask() -> list[dict[str, Any]]:
        async def one(payload: dict[str, list[Any]]) -> dict[str, Any]:
            # A session of its own for every sample, as there.
            async with httpx.AsyncClient(timeout=180) as session:
                response = await session.post(url, json=payload)
                response.raise_for_status()
                return response.json()

        return await asyncio.gather(*(one(payload) for payload in samples(model)))

    answers = asyncio.run(ask())
    assert [answer["rewards"] for answer in answers] == [[pytest.approx(reward, abs=1e-5)] for reward in expected]
    assert all(answer["scores"] == answer["rewards"] for answer in answers)
    assert all(answer["extra_logs"] == {"num_sentences": [2]} for answer in answers)


def test_a_whole_batch_at_once(serve: Callable[..., str], model: SentenceRewardModel):
    alone = samples(model)
    payload = {name: [one[name][0] for one in alone] for name in ("query", "prompts", "labels")}
    answer = httpx.post(serve() + "/get_reward", json=payload, headers={"Content-Type": "application/json"}).json()
    assert answer["rewards"] == pytest.approx([scored.reward for scored in model.score(PROMPTS, RESPONSES)], abs=1e-5)


def test_an_answer_that_ends_at_once_has_a_reward(serve: Callable[..., str], model: SentenceRewardModel):
    prompt = samples(model)[0]["prompts"][0]
    answer = httpx.post(serve() + "/get_reward", json={"query": [prompt + model.tokenizer.eos_token], "prompts": [prompt], "labels": [""]})
    alone = model.score_tokens([model.encoder.encode_prompt(PROMPTS[0])], [[model.tokenizer.eos_token_id]]).reward.item()
    assert answer.json()["rewards"] == [pytest.approx(alone, abs=1e-5)]
    assert answer.json()["extra_logs"] == {"num_sentences": [0]}


def test_samples_that_are_not_whole_are_scored_and_counted(serve: Callable[..., str], model: SentenceRewardModel, caplog):
    whole = samples(model)[0]
    query, prompt = whole["query"][0], whole["prompts"][0]
    url = serve(max_length=60)
    bodies = [
        {"query": [query[17:]], "prompts": [prompt]},
        {"query": ["It is warm."], "prompts": [prompt]},
        {"query": [prompt + "It is warm. " * 100], "prompts": [prompt]},
        {"query": [prompt + "It is warm. " * 1_000_000], "prompts": [prompt]},
    ]
    for body in [*bodies, *bodies, whole]:
        answer = httpx.post(url + "/get_reward", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["rewards"]) == 1
    counts = [line for line in httpx.get(url + "/metrics").text.splitlines() if line.startswith("srm_mended_samples_total")]
    assert sorted(counts) == [
        'srm_mended_samples_total{reason="longer than the reward model reads"} 4.0',
        'srm_mended_samples_total{reason="only the end of the prompt is in the query"} 2.0',
        'srm_mended_samples_total{reason="the prompt is not in the query"} 2.0',
    ]
    assert caplog.text.count("A sample of a policy cannot be scored whole") == 3


@pytest.mark.parametrize("route", ["/get_reward", "/remote_rm"])
def test_end_tokens_of_the_policy_that_are_named(serve: Callable[..., str], model: SentenceRewardModel, route: str):
    (payload, *_) = samples(model)
    prompt, response = payload["prompts"][0], RESPONSES[0] + "</s>"
    body = {"prompt": prompt, "response": response} if route == "/remote_rm" else {**payload, "query": [prompt + response]}
    answer = httpx.post(serve(policy_ends=["</s>"]) + route, json=body).raise_for_status().json()
    got = answer if route == "/remote_rm" else answer["rewards"][0]
    assert got == pytest.approx(model.score(PROMPTS[:1], RESPONSES[:1])[0].reward, abs=1e-5)
