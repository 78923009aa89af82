"""Credit on marked errors against cases worked out by hand."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from srm.errors import UserError
from srm.evaluation.credit import JudgedResponse
from srm.evaluation.spans import SpanRow, average_precision, credit_differences, evaluate_spans, has_spans, read_spans
from srm.evaluation.tables import span_tables
from srm.scoring.results import ScoredResponse, ScoredSentence


def judged(*sentences: tuple[float, bool]) -> JudgedResponse:
    return JudgedResponse(rewards=tuple(reward for reward, _ in sentences), kinds=tuple("bad" if bad else None for _, bad in sentences))


def scored(*sentences: tuple[str, float]) -> ScoredResponse:
    ends = list(itertools.accumulate(len(text) for text, _ in sentences))
    parts = tuple(
        ScoredSentence(text=text, start=end - len(text), end=end, reward=reward, weight=0.5, weighted_reward=-reward)
        for (text, reward), end in zip(sentences, ends, strict=True)
    )
    return ScoredResponse(reward=0.0, prompt_reward=0.0, prompt_weight=1.0, sentences=parts)


def row(id: str, response: str, *spans: tuple[int, int, str], prompt: str | None = None) -> SpanRow:
    errors = tuple({"start": start, "end": end, "kind": kind} for start, end, kind in spans)
    return SpanRow(id=id, prompt=prompt or id, response=response, errors=errors)


def test_average_precision() -> None:
    # In order of reward: bad, good, bad, good. Precision 1/1 at the first bad one, 2/3 at the second.
    assert average_precision(judged((0.1, True), (0.2, False), (0.3, True), (0.4, False))) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(judged((2.0, True), (1.0, False), (0.0, False))) == pytest.approx(1 / 3)
    # The tied group of three has one bad sentence: precision 1/3 at its end.
    assert average_precision(judged((0.0, True), (0.0, False), (0.0, False))) == pytest.approx(1 / 3)


def test_models_and_baselines() -> None:
    """Response one: "Bad." of three sentences is bad. Two: the last of two. Three has no error, so it cannot be compared."""
    rows = [
        row("one", "Good one. Bad. Good too.", (10, 13, "lie")),
        row("two", "Fine. Not so fine.", (6, 18, "rude")),
        row("three", "Fine. Fine."),
    ]
    right = [
        scored(("Good one. ", 1.0), ("Bad. ", -1.0), ("Good too.", 0.0)),
        scored(("Fine. ", 0.0), ("Not so fine.", -1.0)),
        scored(("Fine. ", 0.0), ("Fine.", 0.0)),
    ]
    wrong = [scored(*((sentence.text, -sentence.reward) for sentence in response.sentences)) for response in right]
    results = evaluate_spans(rows, {"right": right, "wrong": wrong}, draws=50)
    assert list(results) == ["right", "wrong", "random", "first is bad", "last is bad", "shortest is bad", "longest is bad"]
    numbers = {name: (result.auc.estimate, result.average_precision.estimate, result.hit_rate.estimate) for name, result in results.items()}
    assert numbers["right"] == (1.0, 1.0, 1.0)
    # The bad sentence comes last of three and of two.
    assert numbers["wrong"] == (0.0, pytest.approx((1 / 3 + 1 / 2) / 2), 0.0)
    # One bad of three: a third each of 1, 1/2 and 1/3. One of two: half each of 1 and 1/2.
    assert numbers["random"] == (0.5, pytest.approx((11 / 18 + 3 / 4) / 2), pytest.approx((1 / 3 + 1 / 2) / 2))
    assert numbers["first is bad"] == (pytest.approx((1 / 2 + 0) / 2), pytest.approx((1 / 2 + 1 / 2) / 2), 0.0)
    assert numbers["last is bad"] == (pytest.approx((1 / 2 + 1) / 2), pytest.approx((1 / 2 + 1) / 2), 0.5)
    assert numbers["shortest is bad"] == (pytest.approx((1 + 0) / 2), pytest.approx((1 + 1 / 2) / 2), 0.5)
    assert numbers["longest is bad"][0] == pytest.approx((0 + 1) / 2)
    # The three responses have three, two and two sentences, so only the second of "two" has a good one at its place: "Fine." of "three".
    places = {
        name: (result.at_place.auc.estimate, result.at_place.num_bad, result.at_place.num_compared) for name, result in results.items()
    }
    assert places["right"] == (1.0, 2, 1)
    assert places["wrong"] == (0.0, 2, 1)
    assert places["random"] == places["first is bad"] == places["last is bad"] == (0.5, 2, 1)
    # "Not so fine." is longer than "Fine.", each beside the mean of its response.
    assert (places["longest is bad"][0], places["shortest is bad"][0]) == (1.0, 0.0)
    assert results["right"].num_responses == 2
    ((first, second, difference),) = credit_differences(results)
    assert (first, second, difference.estimate, difference.low) == ("right", "wrong", 1.0, 1.0)
    assert {kind: summary.auc for kind, summary in (results["wrong"].by_kind or {}).items()} == {"lie": 0.0, "rude": 0.0}


def test_random_is_the_mean_over_all_orders() -> None:
    rows = [row("one", "A. B. C. D. E.", (0, 2, "x"), (6, 8, "x"))]
    texts = ["A. ", "B. ", "C. ", "D. ", "E."]
    precision = [
        average_precision(judged(*((float(place), index in (0, 2)) for index, place in enumerate(order))))
        for order in itertools.permutations(range(5))
    ]
    found = evaluate_spans(rows, {"model": [scored(*((text, 0.0) for text in texts))]}, draws=5)["random"]
    assert found.average_precision.estimate == pytest.approx(np.mean(precision))


def test_weighted_rewards_may_be_judged() -> None:
    rows = [row("one", "Good. Bad.", (6, 10, "lie"))]
    model = [scored(("Good. ", 1.0), ("Bad.", -1.0))]
    assert evaluate_spans(rows, {"m": model}, draws=5)["m"].auc.estimate == 1.0
    # In these scores the weighted reward has the other sign.
    assert evaluate_spans(rows, {"m": model}, measure="weighted_reward", draws=5)["m"].auc.estimate == 0.0


def test_intervals_are_over_prompts() -> None:
    """Two prompts, one with all credit right in three answers, one with it wrong: draws can give 0, 3/4 and 1 only."""
    rows = [row(str(i), "Good. Bad.", (6, 10, "lie"), prompt="a" if i < 3 else "b") for i in range(4)]
    model = [scored(("Good. ", 0.0), ("Bad.", -1.0 if i < 3 else 1.0)) for i in range(4)]
    trace = evaluate_spans(rows, {"m": model}, draws=200)["m"].traces["auc"]
    assert set(trace.tolist()) == {0.0, 0.75, 1.0}


def test_a_model_without_sentences_is_refused() -> None:
    rows = [row("one", "Good. Bad.", (6, 10, "lie"))]
    with pytest.raises(UserError, match="plain: gives one reward a response and none to sentences"):
        evaluate_spans(rows, {"plain": [scored(("Good. Bad.", 1.0))]})


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_reading(tmp_path: Path) -> None:
    whole = {"id": "a", "prompt": "Hi", "response": "Good. Bad.", "errors": [{"type": "lie", "start": 6, "end": 10}]}
    source = write(tmp_path / "spans.jsonl", whole, {**whole, "id": "b", "errors": []})
    assert has_spans(source)
    rows = read_spans(source)
    assert [r.id for r in rows] == ["a", "b"]
    assert rows[0].errors == ({"start": 6, "end": 10, "kind": "lie"},)
    assert not has_spans(write(tmp_path / "pairs.jsonl", {"prompt": "Hi", "chosen": "a", "rejected": "b"}))


@pytest.mark.parametrize(
    ("errors", "message"),
    [
        (None, "`errors` must be a list, got NoneType"),
        ([{"type": "lie", "start": 6}], "number 1 must be"),
        ([{"type": "lie", "start": 6, "end": 11}], "number 1 must be"),
        ([{"type": "lie", "start": 6, "end": 6}], "number 1 must be"),
    ],
)
def test_bad_spans_are_named(tmp_path: Path, errors: Any, message: str) -> None:
    source = write(tmp_path / "spans.jsonl", {"prompt": "Hi", "response": "Good. Bad.", "errors": errors})
    with pytest.raises(UserError, match=message) as error:
        read_spans(source)
    assert "spans.jsonl line 1" in str(error.value)


def test_no_response_to_compare() -> None:
    with pytest.raises(UserError, match="no response has both good and bad sentences"):
        evaluate_spans([row("one", "Good. Bad.")], {"m": [scored(("Good. ", 1.0), ("Bad.", 2.0))]})


def test_the_table_says_who_is_above_half_given_position() -> None:
    """The same six places: "judge" has every bad sentence lower, "inverted" higher, and place alone is on neither side."""
    rows = [row(str(i), "Good. Bad.", *([(6, 10, "lie")] if i % 2 else [])) for i in range(12)]
    judge = [scored(("Good. ", 1.0), ("Bad.", -1.0 if i % 2 else 1.0)) for i in range(12)]
    inverted = [scored(*((sentence.text, -sentence.reward) for sentence in response.sentences)) for response in judge]
    (_, columns, lines), *_ = span_tables(evaluate_spans(rows, {"judge": judge, "inverted": inverted}, draws=50))
    cells = {line[0]: line[columns.index("AUC given\nposition")].split("\n")[0] for line in lines}
    assert (cells["judge"], cells["inverted"], cells["last is bad"]) == ("1.000 > 0.5", "0.000 < 0.5", "0.500")
