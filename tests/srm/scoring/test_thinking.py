"""A thinking block that is left out: the same rewards as text, stream and ids, which its own gain is no part of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from srm import SentenceRewardModel
from srm.data import Comparison, PairCollator, encode_comparisons
from srm.data.overlong import cut_group
from srm.packing import PromptGroup, pack
from srm.rl import group_advantages, token_level_rewards
from srm.scoring.run import score_all
from srm.scoring.token_ids import NO_TEXT

BLOCK = "<think>\nLet me see. It was warm.\n</think>\n\n"
ANSWER = "The cat sat on the mat. It was warm there. No!"
PROMPT = "Where does the cat sit?"


@pytest.fixture(scope="module", params=[{}, {"boundary_token": "<END>"}, {"granularity": "token"}, {"granularity": "response"}], ids=str)
def model(request: pytest.FixtureRequest, awake_model: Callable[..., SentenceRewardModel]) -> SentenceRewardModel:
    return awake_model(segmenter={"name": "punkt", "thinking": "left_out"}, **request.param)


def score(model: SentenceRewardModel, text: str, **more: Any) -> Any:
    return model.score([PROMPT], [text], **more)[0]


def test_the_block_is_read_like_a_longer_prompt(model: SentenceRewardModel) -> None:
    """The first sentence's reward is what it changed since the block's end."""
    whole = model.encoder.encode_responses([BLOCK + ANSWER])[0]
    prompt = model.encoder.encode_prompt(PROMPT)
    joined = PromptGroup(
        prompt_ids=np.array([*prompt, *whole.ids[: whole.opening]], np.int32),
        responses=[replace(whole, ids=whole.ids[whole.opening :], sentence_ends=whole.sentence_ends - whole.opening, opening=0)],
    )
    ((want,),) = score_all(model, [joined], tokens_per_batch=8192, packing="none")
    for packing in ("shared", "packed", "none"):
        got = score(model, BLOCK + ANSWER, packing=packing)
        assert got.reward == pytest.approx(want.reward, abs=1e-5)
        assert [got.prompt_reward, *(one.reward for one in got.sentences)] == pytest.approx(want.sentence_reward, abs=1e-5)
        assert [one.weight for one in got.sentences] == pytest.approx(want.weight[1:], abs=1e-5)
    assert "".join(one.text for one in got.sentences) == ANSWER
    assert got.sentences[0].start == len(BLOCK)
    assert got.reward != pytest.approx(score(model, ANSWER).reward, abs=1e-4)


@pytest.mark.parametrize("text", [BLOCK + ANSWER, ANSWER, BLOCK, "<think>Let me see. It", f"See. It is.</think>{ANSWER}"])
def test_text_stream_and_ids_agree(model: SentenceRewardModel, text: str) -> None:
    want = score(model, text)
    stream = model.stream(PROMPT)
    for start in range(0, len(text), 7):
        stream.feed(text[start : start + 7])
    got = stream.close()
    assert got.reward == pytest.approx(want.reward, abs=1e-4)
    assert [one.text for one in got.sentences] == [one.text for one in want.sentences]
    assert [one.reward for one in got.sentences] == pytest.approx([one.reward for one in want.sentences], abs=1e-4)

    tokenizer = model.tokenizer
    assert tokenizer is not None
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    prompt = model.encoder.encode_prompt(PROMPT)
    prompt = prompt[: len(prompt) - len(model.encoder.boundary_ids)]
    scored = model.score_tokens([prompt], [ids])
    assert scored.reward.item() == pytest.approx(want.reward, abs=1e-5)
    assert scored.sentence_reward[1:].tolist() == pytest.approx([one.reward for one in want.sentences], abs=1e-5)
    said = [tokenizer.decode(ids[start:end]).strip() for start, end in scored.spans[1:].tolist()]
    assert said == [one.text.strip() for one in want.sentences]
    # A policy with another vocabulary.
    other = type(tokenizer).from_pretrained(tokenizer.name_or_path)
    other.add_tokens(["<extra>"])
    apart = model.score_tokens([prompt], [ids], tokenizer=other, prompts=[PROMPT])
    assert apart.reward.item() == pytest.approx(want.reward, abs=1e-5)
    assert apart.spans.tolist() == scored.spans.tolist()


def test_what_is_left_out_earns_nothing(model: SentenceRewardModel) -> None:
    tokenizer = model.tokenizer
    assert tokenizer is not None
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (BLOCK + ANSWER, ANSWER, BLOCK + "No!")]
    scored = model.score_tokens([model.encoder.encode_prompt(PROMPT)] * 3, ids)
    assert scored.opening is not None
    opening = scored.opening.tolist()
    assert [tokenizer.decode(row[:count]).strip() for row, count in zip(ids, opening, strict=True)] == [BLOCK.strip(), "", BLOCK.strip()]
    rewards = token_level_rewards(scored, kind="sentence")
    assert rewards[0, : opening[0]].abs().sum() == 0
    group = torch.zeros(3, dtype=torch.int64)
    own = group_advantages(scored, group, kind="sentence", to_go="own")
    assert own[0, : opening[0]].abs().sum() == 0
    assert (own[0, opening[0] : len(ids[0])] != 0).all()
    # The thought answers for all that follows.
    to_go = group_advantages(scored, group, kind="sentence")
    assert (to_go[0, : opening[0]] == to_go[0, opening[0]]).all()


def test_a_cut_inside_the_block_leaves_no_sentence(model: SentenceRewardModel) -> None:
    response = model.encoder.encode_responses([BLOCK + ANSWER])[0]
    closing = len(model.encoder.boundary_ids)
    for room in range(1 + closing, len(response.ids)):
        group = PromptGroup(prompt_ids=np.array([1], np.int32), responses=[response])
        (cut,) = cut_group(group, max_length=1 + room, policy="truncate_response", num_closing=closing, where="w").responses
        assert len(cut.ids) <= room
        assert (len(cut.sentence_ends) == 0) == (room <= response.opening + closing)
        pack([PromptGroup(prompt_ids=np.array([1], np.int32), responses=[cut, NO_TEXT])], pad_token_id=0)
        if closing:
            assert cut.ids[-1] == response.ids[-1]


def test_training_reads_the_same(model: SentenceRewardModel) -> None:
    comparison = Comparison(prompt=PROMPT, responses=(BLOCK + ANSWER, BLOCK, "No!"), pairs=((0, 1, None), (0, 2, None)), id="1", where="w")
    (row,), _ = encode_comparisons([comparison], model.encoder, max_length=None)
    for got, want in zip(row.responses, model.encoder.encode_responses(list(comparison.responses)), strict=True):
        assert (got.ids.tolist(), got.sentence_ends.tolist(), got.opening) == (want.ids.tolist(), want.sentence_ends.tolist(), want.opening)
    expected = [score(model, str(text)).reward for text in comparison.responses]
    for mode in ("shared", "packed", "none"):
        inputs = PairCollator(packing=mode, pad_token_id=0, granularity=model.config.granularity)([row])
        assert model(inputs["batch"]).reward.tolist() == pytest.approx(expected, abs=1e-5)


def test_by_default_the_block_is_scored(awake_model: Callable[..., SentenceRewardModel]) -> None:
    assert "".join(one.text for one in score(awake_model(), BLOCK + ANSWER).sentences) == BLOCK + ANSWER
