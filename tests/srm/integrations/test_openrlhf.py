"""OpenRLHF's remote reward request."""

from __future__ import annotations

import copy
import json
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import normalizers
from transformers import PreTrainedTokenizerFast

from srm import SentenceRewardModel, UserError
from srm.integrations.openrlhf import CUT_PROMPT, OTHER_PROMPT, TOO_LONG, answer_request, encode_samples

PROMPTS = ["Why is bread salty?", "Where does the cat sit?", "Why is bread salty?"]
RESPONSES = ["It needs salt. Flour alone is dull.", "No, it is wrong!", "It is warm."]


def request(model: SentenceRewardModel, rows: list[int]) -> dict[str, list[str]]:
    """As OpenRLHF builds it: templated prompts, the response and its end token behind them."""
    prompts = [model.encoder.format.render(PROMPTS[row]) for row in rows]
    queries = [prompt + RESPONSES[row] + "<|im_end|>" for prompt, row in zip(prompts, rows, strict=True)]
    return {"query": queries, "prompts": prompts, "labels": [""] * len(rows)}


def test_one_sample_each_and_many_at_once(model: SentenceRewardModel) -> None:
    expected = [scored.reward for scored in model.score(PROMPTS, RESPONSES)]
    alone = [answer_request(model, request(model, [row])) for row in range(3)]
    assert [answer["rewards"][0] for answer in alone] == pytest.approx(expected, abs=1e-5)
    together = answer_request(model, request(model, [0, 1, 2]))
    assert together["rewards"] == pytest.approx(expected, abs=1e-5)
    assert together["scores"] == together["rewards"]
    assert together["extra_logs"] == {"num_sentences": [2, 1, 1]}
    assert json.loads(json.dumps(together)) == together
    assert answer_request(model, {"query": [], "prompts": []}) == {"rewards": [], "scores": [], "extra_logs": {"num_sentences": []}}


def test_a_response_without_text_gets_what_its_prompt_gets(model: SentenceRewardModel) -> None:
    """A policy may end its turn at once, and OpenRLHF has no way to leave a sample out."""
    prompt = model.encoder.format.render(PROMPTS[0])
    body = {"query": [prompt + "<|im_end|>", prompt + "It is warm.<|im_end|>", prompt], "prompts": [prompt] * 3}
    answer = answer_request(model, body)
    alone = model.score_tokens([model.encoder.encode_prompt(PROMPTS[0])], [[model.tokenizer.eos_token_id]]).reward.item()
    assert answer["rewards"][0] == answer["rewards"][2] == pytest.approx(alone, abs=1e-5)
    assert alone != 0
    assert answer["rewards"][1] == pytest.approx(model.score([PROMPTS[0]], ["It is warm."])[0].reward, abs=1e-5)
    assert answer["extra_logs"] == {"num_sentences": [0, 1, 0]}


def composing(model: SentenceRewardModel) -> PreTrainedTokenizerFast:
    """The model's tokenizer as it would be with an NFC normalizer, as Gemma's and Qwen's have it."""
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def as_sent(policy: PreTrainedTokenizerFast, prompt: str, response: str, *, left: int | None = None) -> dict[str, list[str]]:
    """What OpenRLHF sends: the prompt as it was, and what the ids of its last `left` tokens and of the response decode to."""
    prompt_ids = policy(prompt, add_special_tokens=False)["input_ids"]
    response_ids = policy(response, add_special_tokens=False)["input_ids"]
    ids = [*(prompt_ids if left is None else prompt_ids[-left:]), *response_ids, policy.eos_token_id]
    return {"query": [policy.decode(ids, skip_special_tokens=False)], "prompts": [prompt]}


def test_a_prompt_that_was_cut_at_its_start(model: SentenceRewardModel, caplog: pytest.LogCaptureFixture) -> None:
    prompt = model.encoder.format.render("Why is bread s\u00e5lty, \u00e9 and why is it warm?")
    ids = model.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    expected = model.encoder.encode_responses(["It is warm. No!"])[0]
    for left in range(8, len(ids) - 1):
        body = as_sent(model.tokenizer, prompt, "It is warm. No!", left=left)
        (row,), mended = encode_samples(model, body["query"], body["prompts"], max_length=None)
        assert row.responses[0].ids.tolist() == expected.ids.tolist(), left
        assert mended == {CUT_PROMPT: 1}
        # Half a character is all that may be lost.
        assert 0 <= left - len(row.prompt_ids) <= 1
    caplog.clear()
    answer_request(model, body)
    assert caplog.messages == [f"OpenRLHF: 1 of 1 samples were scored in part: {CUT_PROMPT}."]


def test_accents_that_the_tokenizer_composes(model: SentenceRewardModel) -> None:
    prompt = model.encoder.format.render("Is the cafe\u0301 warm?")
    body = as_sent(composing(model), prompt, "The cafe\u0301 is. It is warm.")
    assert not body["query"][0].startswith(prompt)
    (row,), mended = encode_samples(model, body["query"], body["prompts"], max_length=None)
    assert not mended
    assert row.prompt_ids.tolist() == model.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert row.responses[0].ids.tolist() == model.encoder.encode_responses(["The caf\u00e9 is. It is warm."])[0].ids.tolist()


@pytest.mark.parametrize(
    ("query", "response"),
    [
        # A space behind special tokens, as tokenizers of SentencePiece decode; none behind them, where a tokenizer strips; both.
        ("<|im_start|> user\nIs it?<|im_end|> \n<|im_start|> assistant\nIt is.<|im_end|>", "It is."),
        ("<|im_start|>user\nIs it?<|im_end|><|im_start|>assistant\nIt is. <|im_end|>", "It is. "),
        ("user\nIs it?\nassistant\nIt is.", "It is."),
        ("<|im_start|><|im_start|>user\nIs it?<|im_end|>\n<|im_start|>assistant\n\n\nIt is.", "\n\nIt is."),
        ("<|im_start|> user\nIs it?<|im_end|>\n<|im_start|>assistant<|im_end|>", ""),
    ],
)
def test_special_tokens_and_white_space_are_not_compared(model: SentenceRewardModel, query: str, response: str) -> None:
    prompt = model.encoder.format.render("Is it?")
    (row,), mended = encode_samples(model, [query], [prompt], max_length=None)
    assert not mended
    assert row.prompt_ids.tolist() == model.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    expected = model.encoder.encode_responses([response])[0].ids.tolist() if response.strip() else []
    assert row.responses[0].ids.tolist() == expected


@pytest.mark.parametrize("end", ["</s>", "<end_of_turn>", "<|im_end|></s>", "</s><end_of_turn>\nuser", "</s>\n"])
def test_a_policy_with_another_tokenizer_names_its_end_tokens(model: SentenceRewardModel, end: str) -> None:
    prompt = model.encoder.format.render("Why is bread salty?")
    request = {"query": [prompt + "It needs salt. Yes." + end], "prompts": [prompt], "labels": [None]}
    (whole,) = model.score(["Why is bread salty?"], ["It needs salt. Yes."])
    answer = answer_request(model, request, policy_ends=["<end_of_turn>", "</s>"])
    assert answer["rewards"] == pytest.approx([whole.reward], abs=1e-5)
    assert answer["extra_logs"] == {"num_sentences": [2]}
    # At once, without a word.
    (alone,) = answer_request(model, {**request, "query": [prompt]})["rewards"]
    assert answer_request(model, {**request, "query": [prompt + "</s>"]}, policy_ends=["</s>"])["rewards"] == pytest.approx([alone])


@pytest.mark.parametrize("wrong", ["</s>", [""], [" "], [2]])
def test_end_tokens_are_texts(model: SentenceRewardModel, wrong: Any) -> None:
    with pytest.raises(UserError, match=r"policy_ends: must be texts that are not empty, such as \['</s>'\], got"):
        answer_request(model, {"query": [], "prompts": []}, policy_ends=wrong)


def test_what_the_prompt_lost_inside_counts_as_prompt(model: SentenceRewardModel) -> None:
    prompt = model.encoder.format.render("Is \U0001f96f bread warm?")
    query = prompt.replace("\U0001f96f", "<unk>") + "It is. No!<|im_end|>"
    (row,), mended = encode_samples(model, [query], [prompt], max_length=None)
    assert mended == {OTHER_PROMPT: 1}
    assert row.responses[0].text == "It is. No!"
    assert "<unk> bread" in model.tokenizer.decode(row.prompt_ids)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompt=st.text("ab \n\u00e9\ufffd", max_size=30),
    response=st.text("ab \n\u00e9.", max_size=30),
    cut=st.integers(0, 30),
    other=st.booleans(),
)
def test_no_sample_is_refused(model: SentenceRewardModel, prompt: str, response: str, cut: int, other: bool) -> None:
    query = response if other else (prompt + response)[cut:]
    (row,), mended = encode_samples(model, [query], [prompt], max_length=12)
    assert 1 <= row.longest <= 12
    if query.startswith(prompt) and TOO_LONG not in mended:
        assert not mended


def test_long_samples_lose_the_start_of_the_prompt_then_the_end_of_the_response(model: SentenceRewardModel) -> None:
    prompt, response = "Is it warm? " * 9, "It is warm. " * 9
    whole = model.encoder.encode_responses([response])[0].ids.tolist()
    (row,), mended = encode_samples(model, [prompt + response], [prompt], max_length=len(whole) + 5)
    assert mended == {TOO_LONG: 1}
    assert (len(row.prompt_ids), row.responses[0].ids.tolist()) == (5, whole)
    (row,), _ = encode_samples(model, [prompt + response], [prompt], max_length=20)
    assert (len(row.prompt_ids), row.responses[0].ids.tolist()) == (1, whole[:19])


def test_odd_samples_do_not_take_quadratic_time(model: SentenceRewardModel) -> None:
    started = time.perf_counter()
    encode_samples(model, ["a" * 30_000 + "c"], ["b" + "a" * 60_000], max_length=64)
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"prompts": ["a"]}, "`query` must be a list of strings, got NoneType"),
        ({"query": "ab", "prompts": ["a"]}, "`query` must be a list of strings, got str"),
        ({"query": ["ab"], "prompts": []}, "`query` has 1 entries and `prompts` 0"),
    ],
)
def test_bad_requests(model: SentenceRewardModel, body: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        answer_request(model, body)
