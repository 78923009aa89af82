"""slime's remote reward request, as `slime.rollout.rm_hub.remote_rm` sends it: one sample, whose prompt is in the policy's template."""

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

PROMPTS = ["Why is bread salty?", "Where does the cat sit?", "Is it warm?"]
RESPONSES = ["It needs salt. Flour alone is dull.", "No, it is wrong!", ""]


def test_a_number_a_sample(serve: Callable[..., str], model: SentenceRewardModel) -> None:
    """All at once; with an end token and without; a response without text has its prompt's reward."""
    url, end = serve() + "/remote_rm", model.tokenizer.eos_token
    expected = [scored.reward for scored in model.score(PROMPTS[:2], RESPONSES[:2])]
    expected.append(model.score_tokens([model.encoder.encode_prompt(PROMPTS[2])], [[]]).reward.item())

    async def ask() -> list[Any]:
        async with httpx.AsyncClient(timeout=180) as session:
            return await asyncio.gather(
                *(
                    session.post(url, json={"prompt": model.encoder.format.render(prompt), "response": response + tail, "label": None})
                    for prompt, response in zip(PROMPTS, RESPONSES, strict=True)
                    for tail in ("", end)
                )
            )

    answers = asyncio.run(ask())
    assert [answer.json() for answer in answers] == pytest.approx([reward for reward in expected for _ in range(2)], abs=1e-5)


def test_messages_get_the_reward_models_template(serve: Callable[..., str], model: SentenceRewardModel) -> None:
    body = {"prompt": [{"role": "user", "content": PROMPTS[0]}], "response": RESPONSES[0], "label": "any"}
    answer = httpx.post(serve() + "/remote_rm", json=body).json()
    assert answer == pytest.approx(model.score(PROMPTS[:1], RESPONSES[:1])[0].reward, abs=1e-5)


def test_no_sample_is_refused_for_its_length(serve: Callable[..., str], model: SentenceRewardModel) -> None:
    """slime would ask ten times, for minutes, and then end."""
    url = serve(max_length=48)
    answer = httpx.post(url + "/remote_rm", json={"prompt": "Salt. " * 100, "response": "It is. " * 100, "label": None})
    assert isinstance(answer.json(), float)
    assert 'srm_mended_samples_total{reason="longer than the reward model reads"} 1.0' in httpx.get(url + "/metrics").text


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"response": "It is."}, "prompt"),
        ({"prompt": "a", "response": None}, "response"),
        ({"prompt": [{"role": "user"}], "response": "It is."}, "prompt"),
    ],
)
def test_a_wrong_body_is_told_where(serve: Callable[..., str], body: dict[str, Any], where: str) -> None:
    answer = httpx.post(serve() + "/remote_rm", json=body)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"][:2] == ["body", where]
