from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from srm import ScoredResponse, SentenceRewardModel, UserError
from srm.scoring.text import encode_groups

PROMPTS = ["Why is bread salty?", "Where does the cat sit?", [{"role": "user", "content": "Hello!"}]]
RESPONSES = ["It needs salt. Flour alone is dull.", "The cat sat on the mat. It was warm there. Is this right?", "No, it is wrong!"]


def rewards(scored: list[ScoredResponse]) -> torch.Tensor:
    return torch.tensor([[s.reward, s.prompt_reward, *(x.reward for x in s.sentences[:1])] for s in scored])


def set_granularity(model: SentenceRewardModel, granularity: str, path: Path) -> SentenceRewardModel:
    other = SentenceRewardModel.from_backbone(path, granularity=granularity)
    with torch.no_grad():
        other.head.value.weight.copy_(model.head.value.weight)
        other.head.value.bias.copy_(model.head.value.bias)
    return other.eval()


def test_sentences_join_to_the_response_and_weighted_rewards_to_the_reward(model: SentenceRewardModel) -> None:
    for text, scored in zip(RESPONSES, model.score(PROMPTS, RESPONSES), strict=True):
        assert "".join(sentence.text for sentence in scored.sentences) == text
        assert all(text[s.start : s.end] == s.text for s in scored.sentences)
        # Attention over values: the prompt's reward is in all of them.
        total = scored.prompt_reward + sum(s.weighted_reward for s in scored.sentences)
        assert [s.weight for s in scored.sentences] == sorted((s.weight for s in scored.sentences), reverse=True)
        assert total == pytest.approx(scored.reward, abs=1e-5)
    assert [len(s.sentences) for s in model.score(PROMPTS, RESPONSES)] == [2, 3, 1]


@pytest.mark.parametrize("packing", ["shared", "packed", "none"])
@pytest.mark.parametrize("tokens_per_batch", [1, 60, 10_000])
def test_a_score_does_not_depend_on_the_batch(model: SentenceRewardModel, packing: str, tokens_per_batch: int) -> None:
    alone = [model.score([prompt], [response])[0] for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
    together = model.score(PROMPTS, RESPONSES, packing=packing, tokens_per_batch=tokens_per_batch)
    torch.testing.assert_close(rewards(together), rewards(alone), atol=1e-5, rtol=1e-5)


def test_groups_share_their_prompt_and_keep_their_shape(model: SentenceRewardModel) -> None:
    nested = model.score(PROMPTS[:2], [RESPONSES, RESPONSES[:1]])
    assert [len(group) for group in nested] == [3, 1]
    torch.testing.assert_close(rewards(nested[0]), rewards(model.score(PROMPTS[:1] * 3, RESPONSES)), atol=1e-5, rtol=1e-5)


def test_response_level_rewards_are_differences_of_values_that_add_up(model: SentenceRewardModel, tiny_backbone_dir: Path) -> None:
    response_level = set_granularity(model, "response", tiny_backbone_dir)
    for scored in response_level.score(PROMPTS, RESPONSES):
        assert all(sentence.weight == 1 for sentence in scored.sentences)
        assert scored.prompt_reward + sum(s.reward for s in scored.sentences) == pytest.approx(scored.reward, abs=1e-5)
    # The value at the end of a prefix is the reward of that prefix: a response-level model scores prefixes.
    first, whole = response_level.score(PROMPTS[:1] * 2, ["It needs salt.", "It needs salt. Flour alone is dull."])
    assert not math.isclose(first.reward, whole.reward, abs_tol=1e-3)


def test_token_level_rewards_are_means_over_tokens(model: SentenceRewardModel, tiny_backbone_dir: Path) -> None:
    token_level = set_granularity(model, "token", tiny_backbone_dir)
    prompt, text = PROMPTS[1], RESPONSES[1]
    scored = token_level.score([prompt], [text])[0]
    prompt_ids = token_level.encoder.encode_prompt(prompt)
    response = token_level.encoder.encode_response(prompt, text)
    hidden = AutoModel.from_pretrained(tiny_backbone_dir)(input_ids=torch.tensor([[*prompt_ids, *response.ids]])).last_hidden_state[0]
    value = token_level.head.value(hidden)[len(prompt_ids) :, 0]
    assert scored.reward == pytest.approx(value.mean().item(), abs=1e-5)
    starts = [0, *(end + 1 for end in response.sentence_ends)]
    for sentence, start, end in zip(scored.sentences, starts, response.sentence_ends, strict=False):
        assert sentence.reward == pytest.approx(value[start : end + 1].mean().item(), abs=1e-5)
        assert sentence.weight == pytest.approx((end + 1 - start) / len(response.ids), abs=1e-6)


@pytest.mark.parametrize("packing", ["shared", "none"])
def test_scoring_runs_without_dropout_and_leaves_the_mode_alone(model: SentenceRewardModel, packing: str) -> None:
    expected = rewards(model.score(PROMPTS, RESPONSES, packing=packing))
    for layer in model.backbone.layers:
        layer.self_attn.attention_dropout = 0.5
    for training in (True, False):
        model.train(training)
        torch.testing.assert_close(rewards(model.score(PROMPTS, RESPONSES, packing=packing)), expected, atol=1e-5, rtol=1e-5)
        assert model.training is training


def test_progress_is_drawn_on_stderr_where_asked(model: SentenceRewardModel, capsys: pytest.CaptureFixture[str]) -> None:
    expected = model.score(PROMPTS, RESPONSES)
    assert capsys.readouterr() == ("", "")
    assert rewards(model.score(PROMPTS, RESPONSES, show_progress=True)).tolist() == rewards(expected).tolist()
    out, err = capsys.readouterr()
    assert out == ""
    assert "Scoring" in err
    assert "100%" in err


def test_to_dict_is_the_row_that_is_written(model: SentenceRewardModel) -> None:
    scored = model.score(PROMPTS[:1], RESPONSES[:1])[0]
    row = scored.to_dict()
    assert ScoredResponse.from_dict({"id": "a", **row}) == scored
    assert row.keys() == {"reward", "prompt_reward", "prompt_weight", "sentences"}
    assert row["sentences"][0].keys() == {"text", "start", "end", "reward", "weight", "weighted_reward"}


@pytest.mark.parametrize(
    ("prompts", "responses", "message"),
    [
        ("Hi", ["There."], r"must be lists, got a string. Write score\(\[prompt\], \[response\]\)"),
        (["Hi"], ["One.", "Two."], "`prompts` has 1 entries and `responses` 2"),
        (["Hi", "Ho"], ["One.", ["Two."]], "mixes strings and lists"),
        (["Hi"], ["  "], "row 0: `response` is empty"),
        (["Hi " * 300], ["One."], r"score: row 0: prompt and response are .* tokens, the model reads 256\. Choose with --overlong"),
    ],
)
def test_bad_calls(model: SentenceRewardModel, prompts: object, responses: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.score(prompts, responses)


def test_each_response_is_cut_by_itself(model: SentenceRewardModel) -> None:
    """A long neighbour costs a response nothing of its prompt."""
    texts = [RESPONSES[2], RESPONSES[1], RESPONSES[2], RESPONSES[0]]
    prompt = len(model.encoder.encode_prompt(PROMPTS[1]))
    lengths = [len(one.ids) for one in model.encoder.encode_responses(texts)]
    limit = prompt + lengths[0]
    groups = encode_groups(model, PROMPTS[1], texts, where=["here"] * 4, max_length=limit, overlong="truncate_prompt")
    kept = [len(group.prompt_ids) for group in groups for _ in group.responses]
    assert kept == [min(prompt, limit - length) for length in lengths]
    assert kept[0] == kept[2] == prompt > kept[1]
    assert [response.text for group in groups for response in group.responses] == texts
    # Neighbours with the same prompt left are one group.
    together = encode_groups(model, PROMPTS[1], texts[::2], where=["here"] * 2, max_length=limit, overlong="truncate_prompt")
    assert [len(group.responses) for group in together] == [2]


def test_max_length_is_a_limit(model: SentenceRewardModel) -> None:
    with pytest.raises(UserError, match="max_length is 8"):
        model.score(PROMPTS[:1], RESPONSES[:1], max_length=8)


def run_tokens(model: SentenceRewardModel, call: Callable[[], object]) -> list[int]:
    """Tokens of each forward pass of the backbone, padding included."""
    model.packing_mode("shared")  # proved before, so that the proof's passes are not counted
    seen: list[int] = []
    hook = model.backbone.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True)
    call()
    hook.remove()
    return seen


def test_repeated_prompts_are_run_once(model: SentenceRewardModel) -> None:
    together = run_tokens(model, lambda: model.score([PROMPTS[0]], [RESPONSES]))
    apart = run_tokens(model, lambda: model.score([PROMPTS[0]] * 3, RESPONSES))
    assert apart == together
    # Also where other prompts come between them and batches are small: what is equal is run together.
    prompts, responses = [PROMPTS[0], PROMPTS[1], PROMPTS[0]], [RESPONSES[0], RESPONSES[2], RESPONSES[1]]
    nested = run_tokens(model, lambda: model.score(PROMPTS[:2], [[responses[0], responses[2]], [responses[1]]], tokens_per_batch=70))
    assert sum(run_tokens(model, lambda: model.score(prompts, responses, tokens_per_batch=70))) == sum(nested)


@pytest.mark.parametrize("packing", ["shared", "packed", "none"])
def test_no_pass_has_more_tokens_than_allowed(model: SentenceRewardModel, packing: str) -> None:
    responses = [["It needs salt. " * (1 + i % 3) for i in range(9)], ["It was warm there."] * 2, ["Yes."]]
    whole = model.score(PROMPTS, responses, packing=packing)
    alone = max(run_tokens(model, lambda: model.score(PROMPTS[:1], [responses[0][2]], packing=packing)))
    for limit in (2 * alone, 3 * alone):
        seen = run_tokens(model, lambda limit=limit: model.score(PROMPTS, responses, packing=packing, tokens_per_batch=limit))
        assert max(seen) <= limit
        parts = model.score(PROMPTS, responses, packing=packing, tokens_per_batch=limit)
        assert [len(group) for group in parts] == [9, 2, 1]
        for got, want in zip(parts, whole, strict=True):
            torch.testing.assert_close(rewards(got), rewards(want), atol=1e-5, rtol=1e-5)
    # Small pieces are put together as far as they fit.
    assert len(run_tokens(model, lambda: model.score(PROMPTS, responses, packing=packing, tokens_per_batch=100_000))) == 1
