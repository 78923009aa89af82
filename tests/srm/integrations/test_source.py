"""The rewards of one response, from a server and from a model, on the policy's token ids."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from srm import SentenceRewardModel, UserError
from srm.integrations.source import PolicyRewards, RewardSource
from srm.rl import token_level_rewards
from tests.servers import in_thread

PROMPT = "Why is bread salty?"
RESPONSES = ["It needs salt. Flour alone is dull.", "No, it is wrong!", "", "Bread is white. It is old. Salt is dear!"]


@pytest.fixture(scope="module", params=[None, "<|endoftext|>"], ids=["plain", "boundary"])
def model(request: pytest.FixtureRequest, awake_model: Callable[..., SentenceRewardModel]) -> SentenceRewardModel:
    return awake_model(boundary_token=request.param)


@pytest.fixture(scope="module")
def folder(model: SentenceRewardModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reward_model")
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module", params=["url", "model"])
def source(request: pytest.FixtureRequest, model: SentenceRewardModel, folder: Path) -> Iterator[dict[str, str]]:
    if request.param == "model":
        yield {"model": str(folder)}
        return
    with in_thread(model) as address:
        yield {"url": address}


def written(model: SentenceRewardModel) -> list[list[int]]:
    """Each response as a policy writes it, with its end token."""
    ids = model.tokenizer(RESPONSES, add_special_tokens=False)["input_ids"]
    return [[*row, model.tokenizer.eos_token_id] for row in ids]


@pytest.mark.parametrize("kind", ["weighted", "sentence", "response"])
def test_each_token_has_what_score_tokens_pays_it(model: SentenceRewardModel, source: dict[str, str], kind: str) -> None:
    ids = written(model)
    encoder = model.encoder
    prompt = encoder.encode_prompt(PROMPT)
    scored = model.score_tokens([prompt[: len(prompt) - len(encoder.boundary_ids)]] * len(ids), ids)
    expected = token_level_rewards(scored, kind=kind)
    if kind == "response":
        # The end token of the response without text has its reward; it has no sentence that `token_level_rewards` could pay.
        expected[2, 0] = scored.reward[2]
    rewards = PolicyRewards(model.tokenizer, kind=kind, **source)

    async def ask() -> list[list[float]]:
        return [paid for _, paid in await asyncio.gather(*(rewards.score(PROMPT, row) for row in ids))]

    for paid, row in zip(asyncio.run(ask()), expected, strict=True):
        torch.testing.assert_close(torch.tensor(paid), row[: len(paid)], atol=1e-5, rtol=1e-5)


def test_many_at_once_load_a_model_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []
    load = SentenceRewardModel.from_pretrained
    monkeypatch.setattr(SentenceRewardModel, "from_pretrained", lambda name: loads.append(name) or load(name))
    (tmp_path / "other").symlink_to(folder)
    source = RewardSource(model=str(tmp_path / "other"))

    async def ask() -> list[float]:
        return [scored.reward for scored in await asyncio.gather(*(source.score(PROMPT, RESPONSES[0]) for _ in range(16)))]

    assert len(set(asyncio.run(ask()))) == 1
    assert loads == [str(tmp_path / "other")]


@pytest.mark.parametrize("wrong", [{}, {"url": "http://a", "model": "b"}])
def test_one_source(wrong: dict[str, str]) -> None:
    with pytest.raises(UserError, match="give `url` of a running srm-serve, or `model`, one of the two"):
        RewardSource(**wrong)


def test_an_unknown_kind(awake_model: Callable[[], SentenceRewardModel]) -> None:
    with pytest.raises(UserError, match="`kind` must be one of weighted, sentence, response, got 'mean'"):
        PolicyRewards(awake_model().tokenizer, kind="mean", url="http://a")
