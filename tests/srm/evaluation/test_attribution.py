"""Sentence rewards by cutting sentences out: games by hand, and what a model says of the cut texts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from srm import SentenceRewardModel
from srm.data import ResponseRow
from srm.errors import UserError
from srm.evaluation.attribution import EXACT, AttributionModel, one_text_check, rewards_of_sentences, without
from srm.evaluation.classifier import ClassifierModel
from srm.scoring.file import RowSettings
from srm.scoring.results import ScoredResponse
from srm.segmentation import Span

SETTINGS = RowSettings(overlong="error", max_length=None, packing=None, tokens_per_batch=8192)
PROMPT = "Is it warm?"
SENTENCES = ["It was warm there. ", "Bread needs flour.  ", "No, it is wrong!"]
TEXT = "".join(SENTENCES)


def row(response: Any, prompt: Any = PROMPT) -> ResponseRow:
    return ResponseRow(id="a", row_id="a", row=1, label="response", prompt=prompt, response=response, where="line 7")


def score(model: Any, response: Any, settings: RowSettings = SETTINGS, prompt: Any = PROMPT) -> ScoredResponse:
    [[(_, scored)]] = list(model.score_rows([row(response, prompt)], settings))
    assert scored.reward == pytest.approx(scored.prompt_reward + math.fsum(s.weighted_reward for s in scored.sentences), abs=1e-5)
    return scored


def game(num: int, worth: Callable[[frozenset[int]], float]) -> dict[int, float]:
    return {mask: worth(frozenset(player for player in range(num) if mask >> player & 1)) for mask in range(1 << num)}


def by_subsets(worth: dict[int, float], num: int) -> list[float]:
    """Shapley's own formula, which weighs sets in place of orders."""
    result = []
    for player in range(num):
        others = [other for other in range(num) if other != player]
        total = 0.0
        for size in range(num):
            share = math.factorial(size) * math.factorial(num - size - 1) / math.factorial(num)
            masks = [sum(1 << other for other in some) for some in combinations(others, size)]
            total += share * sum(worth[mask | 1 << player] - worth[mask] for mask in masks)
        result.append(total)
    return result


@pytest.mark.parametrize("method", ["leave_one_out", "shapley"])
@pytest.mark.parametrize("num", [1, 2, 5, 9])
def test_parts_that_add_up_come_back(method: Any, num: int) -> None:
    parts = [float(2**player) * (-1) ** player for player in range(num)]
    worth = game(num, lambda some: 3.0 + sum(parts[player] for player in some))
    assert rewards_of_sentences(method, worth, num) == parts


@pytest.mark.parametrize("num", range(1, EXACT + 1))
def test_shapley_values_are_exact_for_a_few_sentences(num: int) -> None:
    random = Random(num)
    worth = game(num, lambda some: random.gauss(0, 1))
    found = rewards_of_sentences("shapley", worth, num)
    assert found == pytest.approx(by_subsets(worth, num), abs=1e-12)
    assert math.fsum(found) == pytest.approx(worth[(1 << num) - 1] - worth[0], abs=1e-12)


def test_the_glove_game() -> None:
    """One left glove, two right ones, and a pair is worth 1."""
    worth = game(3, lambda some: float(0 in some and len(some) > 1))
    assert rewards_of_sentences("shapley", worth, 3) == pytest.approx([2 / 3, 1 / 6, 1 / 6], abs=1e-12)
    # Either of the right ones can be spared.
    assert rewards_of_sentences("leave_one_out", worth, 3) == [1.0, 0.0, 0.0]


def test_drawn_orders_keep_the_sum_and_come_near() -> None:
    num = EXACT + 2
    random = Random(0)
    pull = [[random.gauss(0, 1) for _ in range(num)] for _ in range(num)]
    # Two sentences that do the same.
    for other in range(num):
        pull[0][other] = pull[1][other] = pull[other][0] = pull[other][1] = 0.5
    worth = game(num, lambda some: sum(pull[a][b] for a in some for b in some) + 0.1 * len(some) ** 3)
    few, many = (rewards_of_sentences("shapley", worth, num, permutations) for permutations in (16, 2000))
    assert math.fsum(few) == pytest.approx(worth[(1 << num) - 1] - worth[0], abs=1e-9)
    exact = by_subsets(worth, num)
    assert exact[0] == pytest.approx(exact[1], abs=1e-9)
    error = [max(abs(a - b) for a, b in zip(found, exact, strict=True)) for found in (few, many)]
    assert error[1] < 0.25 < error[0]
    # The same orders each time, so that a resumed run goes on with them.
    assert rewards_of_sentences("shapley", worth, num, 16) == few


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (0b111, "One.  Two.\n\nThree."),
        (0b110, "Two.\n\nThree."),
        (0b101, "One.  Three."),
        (0b011, "One.  Two."),
        (0b010, "Two."),
        (0b000, ""),
    ],
)
def test_a_sentence_goes_with_the_blank_behind_it(mask: int, expected: str) -> None:
    spans = [Span(0, 6), Span(6, 12), Span(12, 18)]
    assert without("One.  Two.\n\nThree.", spans, mask) == expected
    # A blank at the end stays there, and a thought that is no sentence stays in front.
    assert without("One.  Two.\n\nThree.\n", [*spans[:2], Span(12, 19)], mask) == (expected and expected + "\n")
    behind = [Span(span.start + 2, span.end + 2) for span in spans]
    assert without("> One.  Two.\n\nThree.", behind, mask) == ("> " + expected).rstrip()


class _Praise(ClassifierModel):
    """A reward that is a sum over sentences: how many words begin with g, less those with b."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def score_and_cut(self, prompts: Sequence[Any], responses: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        self.read += responses
        return [(10.0 + sum((word[0] == "g") - (word[0] == "b") for word in text.split()), False) for text in responses]


@pytest.mark.parametrize(("method", "texts"), [("leave_one_out", 4), ("shapley", 8)])
def test_a_reward_that_is_a_sum_gives_each_sentence_its_part(method: Any, texts: int) -> None:
    judge = _Praise()
    scored = score(AttributionModel(judge, method), "It is good and great. So bad.  The cat sat, good.")
    assert [sentence.reward for sentence in scored.sentences] == [2.0, -1.0, 1.0]
    assert "".join(sentence.text for sentence in scored.sentences) == "It is good and great. So bad.  The cat sat, good."
    assert (scored.reward, scored.prompt_reward) == (12.0, 10.0)
    assert len(judge.read) == texts
    if method == "leave_one_out":
        assert judge.read[1:] == [
            "So bad.  The cat sat, good.",
            "It is good and great. The cat sat, good.",
            "It is good and great. So bad.",
        ]


@pytest.mark.parametrize("granularity", ["sentence", "response", "token"])
@pytest.mark.parametrize("packing", ["shared", "packed", "none"])
def test_leave_one_out_of_a_model(awake_model: Callable[..., SentenceRewardModel], granularity: str, packing: Any) -> None:
    model = awake_model(granularity=granularity)
    settings = RowSettings(overlong="error", max_length=None, packing=packing, tokens_per_batch=8192)
    scored = score(AttributionModel(model, "leave_one_out"), TEXT, settings)
    a, b, c = SENTENCES
    whole, *cut = (one.reward for one in model.score([PROMPT] * 4, [TEXT, b + c, a + c, (a + b).rstrip()]))  # type: ignore[union-attr]
    assert scored.reward == pytest.approx(whole, abs=1e-5)
    assert [sentence.reward for sentence in scored.sentences] == pytest.approx([whole - rest for rest in cut], abs=1e-5)
    assert [sentence.text for sentence in scored.sentences] == SENTENCES


@pytest.mark.parametrize("method", ["leave_one_out", "shapley"])
def test_the_only_sentence_earns_what_the_prompt_alone_does_not(awake_model: Callable[..., SentenceRewardModel], method: Any) -> None:
    model = awake_model(granularity="response")
    own = model.score([PROMPT], ["It was warm there."])[0]
    scored = score(AttributionModel(model, method), "It was warm there.")
    # A response-level model has a value at the end of its prompt.
    assert scored.prompt_reward == pytest.approx(own.prompt_reward, abs=1e-5)  # type: ignore[union-attr]
    assert scored.sentences[0].reward == pytest.approx(own.sentences[0].reward, abs=1e-5)  # type: ignore[union-attr]
    # And a sentence-level one says the same of no ids.
    model = awake_model()
    alone = model.score_tokens([model.encoder.encode_prompt(PROMPT)], [[]]).reward
    assert score(AttributionModel(model, method), "It was warm there.").prompt_reward == pytest.approx(alone.item(), abs=1e-5)


def test_shapley_values_of_a_model(awake_model: Callable[..., SentenceRewardModel]) -> None:
    model = awake_model()
    a, b, c = SENTENCES
    texts = {0b001: a.rstrip(), 0b010: b.rstrip(), 0b100: c, 0b011: (a + b).rstrip(), 0b101: a + c, 0b110: b + c, 0b111: TEXT}
    worth = {mask: one.reward for mask, one in zip(texts, model.score([PROMPT] * 7, list(texts.values())), strict=True)}  # type: ignore[union-attr]
    worth[0] = model.score_tokens([model.encoder.encode_prompt(PROMPT)], [[]]).reward.item()
    scored = score(AttributionModel(model, "shapley"), TEXT)
    assert [sentence.reward for sentence in scored.sentences] == pytest.approx(by_subsets(worth, 3), abs=1e-5)
    assert scored.prompt_reward == pytest.approx(worth[0], abs=1e-5)


def test_prompts_run_once(awake_model: Callable[..., SentenceRewardModel]) -> None:
    model = awake_model()
    ran: list[int] = []
    model.packing_mode("shared")
    model.register_forward_pre_hook(lambda _, arguments: ran.append(arguments[0].num_tokens))
    score(AttributionModel(model, "leave_one_out"), TEXT)
    a, b, c = SENTENCES
    responses = [len(ids.ids) for ids in model.encoder.encode_responses([TEXT, b + c, a + c, (a + b).rstrip()])]
    assert ran == [len(model.encoder.encode_prompt(PROMPT)) + sum(responses)]


@pytest.fixture
def classifier(tmp_path: Path, tiny_tokenizer_dir: Path) -> ClassifierModel:
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        initializer_range=0.2,
        num_labels=1,
        max_position_embeddings=256,
        pad_token_id=tokenizer.pad_token_id,
        **sizes,
    )
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return ClassifierModel(str(tmp_path))


def test_a_classifier_has_sentences_now(classifier: ClassifierModel) -> None:
    a, b, c = SENTENCES
    whole, *cut = classifier.score([PROMPT] * 4, [TEXT, b + c, a + c, (a + b).rstrip()])
    scored = score(AttributionModel(classifier, "leave_one_out"), TEXT)
    assert [sentence.reward for sentence in scored.sentences] == pytest.approx([whole - rest for rest in cut], abs=1e-5)
    # The empty response is an empty turn.
    ids = classifier.tokenizer(f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n")["input_ids"]
    with torch.no_grad():
        empty = classifier.model(torch.tensor([ids])).logits.item()
    assert score(AttributionModel(classifier, "shapley"), TEXT).prompt_reward == pytest.approx(empty, abs=1e-5)


def test_rows_come_back_in_order(awake_model: Callable[..., SentenceRewardModel], classifier: ClassifierModel) -> None:
    rows = [row(" ".join(SENTENCES[: 1 + number % 3]), f"Question {number}?") for number in range(7)]
    for judge in (awake_model(), classifier):
        model = AttributionModel(judge, "leave_one_out")
        small = RowSettings(overlong="error", max_length=None, packing=None, tokens_per_batch=40)
        found = [pair for some in model.score_rows(rows, small) for pair in some]
        assert [one.prompt for one, _ in found] == [one.prompt for one in rows]
        alone = [score(model, one.response, prompt=one.prompt).reward for one in rows]
        assert [scored.reward for _, scored in found] == pytest.approx(alone, abs=1e-5)


def test_responses_that_are_too_long(awake_model: Callable[..., SentenceRewardModel]) -> None:
    model = AttributionModel(awake_model(), "leave_one_out")
    long = RowSettings(overlong="error", max_length=24, packing=None, tokens_per_batch=8192)
    with pytest.raises(UserError, match=r"line 7: prompt and response are \d+ tokens, max_length is 24"):
        score(model, TEXT, long)
    cut = score(model, TEXT * 3, RowSettings(overlong="truncate_response", max_length=40, packing=None, tokens_per_batch=8192))
    assert 0 < len(cut.sentences) < 9, "sentences behind the cut get no reward"


def test_responses_of_several_messages_are_refused(awake_model: Callable[..., SentenceRewardModel], classifier: ClassifierModel) -> None:
    turns = [{"role": role, "content": "It was warm."} for role in ("assistant", "user", "assistant")]
    for judge in (awake_model(), classifier):
        with pytest.raises(UserError, match="line 7: sentences are cut out of a text, and the response is several messages"):
            score(AttributionModel(judge, "shapley"), turns)
    checked: list[Any] = []
    check = one_text_check(lambda prompt, responses: checked.append(responses))
    check(PROMPT, [TEXT])
    assert checked == [[TEXT]]
    with pytest.raises(ValueError, match="the response is several messages"):
        check(PROMPT, [turns])
