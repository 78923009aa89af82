"""Credit metrics against cases worked out by hand."""

from __future__ import annotations

import itertools
import random

import pytest

from srm.evaluation.credit import JudgedResponse, auc, credit_report, judge
from srm.scoring.results import ScoredResponse, ScoredSentence


def _response(*sentences: tuple[float, str | None]) -> JudgedResponse:
    return JudgedResponse(rewards=tuple(reward for reward, _ in sentences), kinds=tuple(kind for _, kind in sentences))


def _scored(*texts: str) -> ScoredResponse:
    ends = list(itertools.accumulate(map(len, texts)))
    sentences = tuple(
        ScoredSentence(text=text, start=end - len(text), end=end, reward=float(i), weight=0.5, weighted_reward=i / 2)
        for i, (text, end) in enumerate(zip(texts, ends, strict=True))
    )
    return ScoredResponse(reward=0.0, prompt_reward=0.0, prompt_weight=1.0, sentences=sentences)


def test_auc_of_small_cases() -> None:
    assert auc([3.0, 4.0], [1.0, 2.0]) == 1.0
    assert auc([1.0], [2.0, 3.0]) == 0.0
    assert auc([1.0], [1.0]) == 0.5
    # Of the six comparisons three are won and two tied.
    assert auc([1.0, 3.0], [0.0, 1.0, 3.0]) == pytest.approx((3 + 2 * 0.5) / 6)
    assert auc([float("inf")], [1.0, float("-inf")]) == 1.0


def test_auc_is_the_share_of_won_comparisons() -> None:
    generator = random.Random(0)
    for _ in range(50):
        a = [generator.randrange(5) for _ in range(generator.randrange(1, 9))]
        b = [generator.randrange(5) for _ in range(generator.randrange(1, 9))]
        wins = sum((x > y) + (x == y) / 2 for x in a for y in b)
        assert auc(a, b) == pytest.approx(wins / len(a) / len(b))


@pytest.mark.parametrize(("a", "b", "message"), [([], [1.0], "0 positive and 1 negative"), ([1.0], [float("nan")], "NaN")])
def test_auc_refuses_what_has_no_rank(a: list[float], b: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        auc(a, b)


def test_report_by_hand() -> None:
    right = _response((1.0, None), (-2.0, "rude"), (0.5, None))
    # The bad sentence beats one of two good ones and is not the lowest.
    half = _response((3.0, None), (2.5, "wrong"), (2.0, None))
    report = credit_report([right, half])
    assert report.overall.num_responses == 2
    assert report.overall.num_bad == 2
    assert report.overall.auc == pytest.approx((1.0 + 0.5) / 2)
    # Pooled: good 1, 0.5, 3, 2 against bad -2 (lower than all) and 2.5 (lower than 3 alone).
    assert report.overall.pooled_auc == pytest.approx((4 + 1) / 8)
    assert report.overall.hit_rate == 0.5
    assert report.overall.chance_hit_rate == pytest.approx(1 / 3)
    assert {kind: summary.auc for kind, summary in report.by_kind.items()} == {"rude": 1.0, "wrong": 0.5}
    assert report.several is None


def test_each_kind_is_judged_without_the_other_kinds() -> None:
    # `rude` is the lowest of all; without it, `wrong` is the lowest of what is left.
    report = credit_report([_response((0.0, None), (-1.0, "wrong"), (-2.0, "rude"))])
    assert report.by_kind["wrong"].auc == 1.0
    assert report.by_kind["wrong"].hit_rate == 1.0
    assert report.by_kind["wrong"].num_bad == 1
    assert report.several is not None
    assert report.several.num_bad == 2
    assert report.several.chance_hit_rate == pytest.approx(2 / 3)


def test_ties_for_the_lowest_count_their_part() -> None:
    assert credit_report([_response((-1.0, "wrong"), (-1.0, None), (0.0, None))]).overall.hit_rate == 0.5


def test_inverted_credit_shows_below_one_half() -> None:
    report = credit_report([_response((0.0, None), (1.0, "wrong"), (-1.0, None))])
    assert report.overall.auc == 0.0
    assert report.overall.hit_rate == 0.0


def test_responses_with_nothing_to_compare_are_left_out() -> None:
    all_good, all_bad = _response((1.0, None)), _response((1.0, "wrong"), (2.0, "wrong"))
    usable = _response((1.0, None), (0.0, "wrong"))
    assert credit_report([all_good, usable, all_bad]).overall.num_responses == 1
    with pytest.raises(ValueError, match="nothing to compare"):
        credit_report([all_good, all_bad])


def test_judge_finds_the_sentences_that_a_bad_span_touches() -> None:
    scored = _scored("One is fine. ", "Two is bad. ", "Three is fine.")
    judged = judge(scored, [{"start": 13, "end": 24, "kind": "wrong"}])
    assert judged.kinds == (None, "wrong", None)
    assert judged.rewards == (0.0, 1.0, 2.0)
    assert judge(scored, [], measure="weighted_reward").rewards == (0.0, 0.5, 1.0)


def test_judge_ignores_the_space_between_sentences() -> None:
    scored = _scored("One. ", "Two.")
    assert judge(scored, [{"start": 4, "end": 5, "kind": "wrong"}]).kinds == (None, None)
    assert judge(scored, [{"start": 3, "end": 5, "kind": "wrong"}]).kinds == ("wrong", None)


def test_judge_marks_a_sentence_that_merged_a_bad_one_and_every_one_of_a_split() -> None:
    assert judge(_scored("Good. Bad. "), [{"start": 6, "end": 10, "kind": "wrong"}]).kinds == ("wrong",)
    assert judge(_scored("Bad one; ", "and more."), [{"start": 0, "end": 18, "kind": "wrong"}]).kinds == ("wrong", "wrong")


def test_judged_response_needs_one_kind_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"`rewards` has 2 sentences.*`kinds` 1"):
        JudgedResponse(rewards=(1.0, 2.0), kinds=(None,))


def test_report_as_a_dict_is_plain_data() -> None:
    report = credit_report([_response((1.0, None), (0.0, "wrong"))]).to_dict()
    assert report["overall"]["auc"] == 1.0
    assert report["by_kind"]["wrong"]["num_bad"] == 1
    assert report["several"] is None
