"""Rewards on a policy's own token ids."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from srm import SentenceRewardModel, UserError
from srm.scoring.token_ids import ScoredTokens

PROMPTS = ["Why is bread salty?", "Where does the cat sit?"]
RESPONSES = ["It needs salt. Flour alone is dull.", "The cat sat on the mat. It was warm there. Is this ri", "No, it is wrong!"]


def ids_of(model: SentenceRewardModel, prompts: list[str], responses: list[str]) -> tuple[list[list[int]], list[list[int]]]:
    return [model.encoder.encode_prompt(prompt) for prompt in prompts], [r.ids.tolist() for r in model.encoder.encode_responses(responses)]


def check_against_text(model: SentenceRewardModel, scored: ScoredTokens, prompts: list[str], responses: list[str]) -> None:
    expected = model.score(prompts, responses)
    torch.testing.assert_close(scored.reward, torch.tensor([one.reward for one in expected]), atol=1e-5, rtol=1e-5)
    for index, one in enumerate(expected):
        rows = slice(int(scored.cu_boundaries[index]), int(scored.cu_boundaries[index + 1]))
        want = torch.tensor([one.prompt_reward, *(sentence.reward for sentence in one.sentences)])
        torch.testing.assert_close(scored.sentence_reward[rows], want, atol=1e-5, rtol=1e-5)
        weights = torch.tensor([sentence.weight for sentence in one.sentences])
        torch.testing.assert_close(scored.weight[rows][1:], weights, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("packing", ["shared", "packed", "none"])
def test_equals_the_score_of_the_text(model: SentenceRewardModel, packing: str) -> None:
    prompts = [PROMPTS[0], PROMPTS[1], PROMPTS[0]]
    prompt_ids, response_ids = ids_of(model, prompts, RESPONSES)
    scored = model.score_tokens(prompt_ids, response_ids, packing=packing)
    check_against_text(model, scored, prompts, RESPONSES)
    assert scored.lengths.tolist() == [len(row) for row in response_ids]
    spans = scored.spans[int(scored.cu_boundaries[1]) + 1 : int(scored.cu_boundaries[2])].tolist()
    texts = [model.tokenizer.decode(response_ids[1][start:end]).strip() for start, end in spans]  # type: ignore[union-attr]
    assert texts == ["The cat sat on the mat.", "It was warm there.", "Is this ri"]


@pytest.mark.parametrize("tokens_per_batch", [1, 70, 10_000])
def test_does_not_depend_on_the_batch(model: SentenceRewardModel, tokens_per_batch: int) -> None:
    prompts = [PROMPTS[index % 2] for index in range(6)]
    prompt_ids, response_ids = ids_of(model, prompts, RESPONSES * 2)
    check_against_text(model, model.score_tokens(prompt_ids, response_ids, tokens_per_batch=tokens_per_batch), prompts, RESPONSES * 2)


def tokens_run(model: SentenceRewardModel, call: Callable[[], object]) -> list[int]:
    """Tokens of each forward pass of the backbone, padding included."""
    model.packing_mode("shared")  # proved before, so that the proof's passes are not counted
    seen: list[int] = []
    hook = model.backbone.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True)
    call()
    hook.remove()
    return seen


def test_equal_prompts_run_once(model: SentenceRewardModel) -> None:
    (prompt, *_), responses = ids_of(model, PROMPTS, RESPONSES)
    prompts = [prompt, [*prompt, prompt[0]], prompt] * 30
    once = len(prompt) + len(prompt) + 1 + 30 * sum(map(len, responses))
    assert tokens_run(model, lambda: model.score_tokens(prompts, responses * 30, tokens_per_batch=100_000)) == [once]


@pytest.mark.parametrize("packing", ["shared", "packed", "none"])
@pytest.mark.parametrize("limit", [142, 300])
def test_no_pass_has_more_tokens_than_allowed(model: SentenceRewardModel, packing: str, limit: int) -> None:
    """As in `score`: a prompt of 55 tokens, 24 responses of many lengths."""
    (word, *_), (answer, *_) = ids_of(model, PROMPTS, ["It needs salt. Flour alone is dull. " * 3])
    prompts, responses = [(word * 9)[:55]] * 24, [answer[: 2 + index] for index in range(24)]
    whole = model.score_tokens(prompts, responses, packing=packing)
    seen = tokens_run(model, lambda: model.score_tokens(prompts, responses, packing=packing, tokens_per_batch=limit))
    assert max(seen) <= limit
    # Small pieces are put together as far as they fit.
    assert max(seen) > limit / 2
    parts = model.score_tokens(prompts, responses, packing=packing, tokens_per_batch=limit)
    torch.testing.assert_close(parts.sentence_reward, whole.sentence_reward, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("with_eos", [True, False])
def test_padded_ids_with_and_without_eos(model: SentenceRewardModel, with_eos: bool) -> None:
    tokenizer = model.tokenizer
    assert tokenizer is not None
    # In this tokenizer pad and eos are one id.
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    prompts = [PROMPTS[0], PROMPTS[1], PROMPTS[0]]
    prompt_ids, response_ids = ids_of(model, prompts, RESPONSES)
    rows = [[*row, tokenizer.eos_token_id, *response_ids[0][:3]] if with_eos else row for row in response_ids]
    width = max(map(len, rows)) + 2
    padded = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])
    left = max(map(len, prompt_ids))
    prompt_tensor = torch.tensor([[0] * (left - len(row)) + row for row in prompt_ids])
    mask = torch.tensor([[0] * (left - len(row)) + [1] * len(row) for row in prompt_ids])
    before = padded.clone()
    scored = model.score_tokens(prompt_tensor, padded, prompt_mask=mask)
    assert torch.equal(padded, before)
    assert scored.width == width
    assert scored.lengths.tolist() == [len(row) for row in response_ids]
    check_against_text(model, scored, prompts, RESPONSES)
    placed = scored.to_padded(scored.weighted_reward)
    for row, one in zip(placed, model.score(prompts, RESPONSES), strict=True):
        assert row.sum().item() == pytest.approx(sum(sentence.weighted_reward for sentence in one.sentences), abs=1e-5)


@pytest.mark.parametrize("granularity", ["sentence", "response", "token"])
def test_a_response_without_text_has_its_prompts_share(tiny_backbone_dir: Path, granularity: str) -> None:
    model = SentenceRewardModel.from_backbone(tiny_backbone_dir, granularity=granularity)
    torch.nn.init.normal_(model.head.value.weight)
    prompt_ids, response_ids = ids_of(model, [PROMPTS[0], PROMPTS[0]], RESPONSES[:2])
    eos = model.tokenizer.eos_token_id  # type: ignore[union-attr]
    scored = model.score_tokens([*prompt_ids, prompt_ids[0]], [response_ids[0], [eos, *response_ids[1]], response_ids[1]])
    assert scored.cu_boundaries.diff().tolist() == [3, 1, 4]
    assert scored.lengths.tolist()[1] == 0
    assert scored.reward.isfinite().all()
    assert scored.to_padded(scored.sentence_reward)[1].abs().sum() == 0
    if granularity == "sentence":
        # What the other responses say about the same prompt.
        torch.testing.assert_close(scored.reward[1], scored.sentence_reward[0])
    check = model.score([PROMPTS[0]], [RESPONSES[1]])[0]
    assert scored.reward[2].item() == pytest.approx(check.reward, abs=1e-5)


def test_boundary_token_is_added_for_the_model_only(tiny_backbone_dir: Path) -> None:
    model = SentenceRewardModel.from_backbone(tiny_backbone_dir, boundary_token="<END>")
    torch.nn.init.normal_(model.head.value.weight)
    plain = AutoTokenizer.from_pretrained(tiny_backbone_dir)
    prompt_ids = [model.encoder.encode_prompt(PROMPTS[0])[:-1]]
    response_ids = [plain(RESPONSES[0], add_special_tokens=False)["input_ids"]]
    scored = model.score_tokens(prompt_ids, response_ids)
    check_against_text(model, scored, PROMPTS[:1], RESPONSES[:1])
    assert scored.ends.tolist()[-1] == len(response_ids[0]) - 1


def test_segmenter_without_rules_on_ids_goes_through_text(tiny_backbone_dir: Path) -> None:
    model = SentenceRewardModel.from_backbone(tiny_backbone_dir, segmenter={"name": "punkt", "min_chars": 14})
    torch.nn.init.normal_(model.head.value.weight)
    prompt_ids, response_ids = ids_of(model, PROMPTS[:1], RESPONSES[1:2])
    scored = model.score_tokens(prompt_ids, response_ids)
    check_against_text(model, scored, PROMPTS[:1], RESPONSES[1:2])


@pytest.fixture(scope="module")
def other_tokenizer() -> PreTrainedTokenizerBase:
    """One token a byte: nothing in common with the reward model's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {token: index for index, token in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), "</s>"])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def test_another_tokenizer_maps_through_characters(model: SentenceRewardModel, other_tokenizer: PreTrainedTokenizerBase) -> None:
    texts = ["It is warm. Éé is good.", "No. \u00e9"]
    rows = [other_tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    # The second response was cut in the middle of its last character.
    rows[1] = rows[1][:-1]
    scored = model.score_tokens([[1], [1]], rows, tokenizer=other_tokenizer, prompts=PROMPTS)
    check_against_text(model, scored, PROMPTS, [texts[0], "No. \ufffd"])
    assert scored.ends.tolist()[:3] == [-1, len(b"It is warm.") - 1, len(texts[0].encode()) - 1]
    assert scored.width == len(rows[0])
    with pytest.raises(ValueError, match="Pass `prompts` too"):
        model.score_tokens([[1], [1]], rows, tokenizer=other_tokenizer)
    blank = model.score_tokens([[1]], [[other_tokenizer.eos_token_id]], tokenizer=other_tokenizer, prompts=PROMPTS[:1])
    assert blank.ends.tolist() == [-1]
    assert blank.opening is None
    (letter,) = other_tokenizer("A", add_special_tokens=False)["input_ids"]
    assert model.score_tokens([[1]], [[letter]], tokenizer=other_tokenizer, prompts=PROMPTS[:1]).ends.tolist() == [-1, 0]


def test_a_sentence_of_one_token(model: SentenceRewardModel) -> None:
    prompt_ids, ((token, *_), *_) = ids_of(model, PROMPTS, RESPONSES[:1])
    scored = model.score_tokens(prompt_ids, [[token], [token]])
    assert scored.ends.tolist() == [-1, 0, -1, 0]
    # Without a mask all of a padded prompt is read.
    padded = model.score_tokens(torch.tensor(prompt_ids[:1]), torch.tensor([[token]]))
    torch.testing.assert_close(padded.reward, scored.reward[:1], atol=1e-5, rtol=1e-5)
    assert scored.is_sentence.tolist() == [False, True, False, True]
    assert scored.spans.tolist() == [[0, 0], [0, 1], [0, 0], [0, 1]]
    assert scored.to_padded(scored.sentence_reward).tolist() == scored.sentence_reward[1::2, None].tolist()


def test_a_policy_that_writes_the_templates_header_itself(
    tiny_backbone_dir: Path, tmp_path: Path, awake_model: Callable[..., SentenceRewardModel]
) -> None:
    """The model reads it as part of the prompt; what comes back is counted on the policy's ids."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone_dir)
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + ':\\n' + m['content'] + eos_token }}{% endfor %}"
    shutil.copytree(tiny_backbone_dir, tmp_path, dirs_exist_ok=True)
    tokenizer.save_pretrained(tmp_path)
    model = awake_model(tmp_path, segmenter={"name": "punkt", "thinking": "left_out"})
    header = tokenizer("assistant:\n", add_special_tokens=False)["input_ids"]
    prompt, answers = ids_of(model, PROMPTS[:1], ["<think>\nHm. Yes.\n</think>\n\n" + RESPONSES[0], RESPONSES[1]])
    assert prompt[0][-len(header) :] == header
    assert len(header) > 2
    bare = prompt[0][: -len(header)]
    want = model.score_tokens([*prompt, *prompt], answers)
    written = [[*header, *answers[0]], answers[1], [*header, *answers[1]]]
    padded = torch.tensor([[*row, *[0] * (max(map(len, written)) - len(row))] for row in written])
    # Of the last one there is less than the header.
    lengths = torch.tensor([len(written[0]), len(written[1]), 2])
    got = model.score_tokens([bare, *prompt, bare], padded, response_lengths=lengths)
    assert got.cu_boundaries.tolist() == [*want.cu_boundaries.tolist(), want.cu_boundaries[-1].item() + 1]
    torch.testing.assert_close(got.reward[:2], want.reward, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got.sentence_reward[:-1], want.sentence_reward, atol=1e-5, rtol=1e-5)
    shift = torch.where(want.is_sentence & (want.response_index == 0), len(header), 0)
    assert got.ends.tolist() == [*(want.ends + shift).tolist(), -1]
    assert got.opening is not None
    assert want.opening is not None
    assert got.opening.tolist() == [want.opening[0].item() + len(header), 0, 0]


def test_the_longest_that_the_model_reads(model: SentenceRewardModel) -> None:
    (prompt, *_), (answer, *_) = ids_of(model, PROMPTS, RESPONSES[:1])
    room = 256 - len(prompt)
    assert model.score_tokens([prompt], [(answer * 40)[:room]]).lengths.tolist() == [room]
    with pytest.raises(UserError, match="have 257 tokens, the reward model reads 256"):
        model.score_tokens([prompt], [(answer * 40)[: room + 1]])


def test_responses_without_thoughts_have_no_opening(model: SentenceRewardModel) -> None:
    eos = model.tokenizer.eos_token_id  # type: ignore[union-attr]
    prompt_ids, response_ids = ids_of(model, PROMPTS, RESPONSES[:1])
    assert model.score_tokens(prompt_ids, [*response_ids, [eos]]).opening is None


def test_no_rows(model: SentenceRewardModel) -> None:
    scored = model.score_tokens([], [])
    assert scored.reward.shape == (0,)
    assert scored.cu_boundaries.tolist() == [0]
    assert scored.to_padded(scored.sentence_reward).shape == (0, 0)


def test_errors(model: SentenceRewardModel) -> None:
    prompt_ids, response_ids = ids_of(model, PROMPTS[:1], RESPONSES[:1])
    with pytest.raises(ValueError, match="1 prompts and 2 responses"):
        model.score_tokens(prompt_ids, response_ids * 2)
    with pytest.raises(ValueError, match="prompt 0 is empty"):
        model.score_tokens([[]], response_ids)
    with pytest.raises(ValueError, match="the reward model reads 256"):
        model.score_tokens(prompt_ids, [response_ids[0] * 30])
    with pytest.raises(ValueError, match="`prompt_mask` must have the shape"):
        model.score_tokens(torch.tensor(prompt_ids), response_ids, prompt_mask=torch.ones(1, 1))
    for unknown in (10**6, -1, 2**32 + 5):
        for prompt, response in ((prompt_ids, [[unknown]]), ([[unknown]], response_ids)):
            with pytest.raises(ValueError, match=rf"prompt 0 and its response: the token id {unknown} has no embedding, the model knows 0"):
                model.score_tokens(prompt, response)
    with pytest.raises(ValueError, match="`response_ids` must be integers, got float32"):
        model.score_tokens(prompt_ids, torch.ones(1, 2))
    with pytest.raises(ValueError, match=r"`response_ids` must be \[B, L\] or lists, got \[2\]"):
        model.score_tokens(prompt_ids, torch.ones(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="`response_lengths` go with a padded tensor"):
        model.score_tokens(prompt_ids, response_ids, response_lengths=torch.tensor([2]))
    with pytest.raises(ValueError, match="`prompt_mask` goes with a padded tensor"):
        model.score_tokens(prompt_ids, response_ids, prompt_mask=torch.ones(1, 1))
    padded = torch.tensor(prompt_ids)
    for tokens_per_batch in (0, -1, 2.5, True):
        for call in (model.score_tokens, model.score):
            texts = (["a"], ["It is."]) if call == model.score else (prompt_ids, response_ids)
            with pytest.raises(UserError, match=rf"`tokens_per_batch` must be a whole number, 1 or more, got {tokens_per_batch}"):
                call(*texts, tokens_per_batch=tokens_per_batch)  # type: ignore[operator]
    with pytest.raises(UserError, match=r"`prompt_mask` must be integers or bool, got float32"):
        model.score_tokens(padded, response_ids, prompt_mask=torch.full(padded.shape, 0.5))
    with pytest.raises(UserError, match=r"`response_lengths` must be integers, got float32"):
        model.score_tokens(prompt_ids, torch.tensor(response_ids), response_lengths=torch.tensor([1.5]))
    for ids in (padded.bool(), padded.float()):
        with pytest.raises(ValueError, match=r"`prompt_ids` must be integers"):
            model.score_tokens(ids, response_ids)
    model.tokenizer = None
    with pytest.raises(UserError, match=r"the model has no tokenizer.*pass `tokenizer`"):
        model.score_tokens(prompt_ids, response_ids)


@pytest.mark.parametrize(
    ("row", "got"),
    [
        ([5, 5.7], "5.7"),
        (["5"], "'5'"),
        ([True], "True"),
        ([np.float64(5)], "5.0"),
        ([torch.tensor(True)], "True"),
        ("57", "a list of integers, got str"),
        (5, "a list of integers, got int"),
        (np.array([5.0]), "float64"),
        (torch.ones(2, dtype=torch.bool), "bool"),
        ([10**30], "64 bits|no embedding"),
    ],
)
def test_ids_are_integers_and_nothing_else(model: SentenceRewardModel, row: Any, got: str) -> None:
    good = [5, 7]
    with pytest.raises(UserError, match=rf"`response_ids`.*({got})"):
        model.score_tokens([good, good], [good, row])
    with pytest.raises(UserError, match=rf"(`prompt_ids`: row 1|prompt 1).*({got})"):
        model.score_tokens([good, row], [good, good])


def test_integers_of_numpy_and_torch_are_ids(model: SentenceRewardModel) -> None:
    want = model.score_tokens([[5, 7]], [[9, 11]]).reward
    forms = (np.array([9, 11]), torch.tensor([9, 11], dtype=torch.int32), [np.int64(9), torch.tensor(11)], np.array([9, 11], dtype=object))
    for row in forms:
        assert model.score_tokens([[5, 7]], [row]).reward == want
    assert model.score_tokens(np.array([[5, 7]]), np.array([[9, 11]], dtype=np.int16)).reward == want  # type: ignore[arg-type]


def test_a_policy_with_the_same_vocabulary_needs_no_text(model: SentenceRewardModel, tiny_tokenizer_dir: Path) -> None:
    prompt_ids, response_ids = ids_of(model, PROMPTS, RESPONSES[:2])
    same = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    assert same is not model.tokenizer
    check_against_text(model, model.score_tokens(prompt_ids, response_ids, tokenizer=same), PROMPTS, RESPONSES[:2])
