"""Each policy for rows over the limit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srm.data import EncodedComparison, EncodedResponse, OverlongReport
from srm.data.overlong import Shortened, cut_group, shorten
from srm.errors import UserError
from srm.packing import PromptGroup, ResponseIds
from srm.packing.batch import IntArray
from srm.segmentation import Span

MARK = 99


def array(values: object) -> IntArray:
    return np.array(values, dtype=np.int32)


def response(ids: list[int], ends: list[int]) -> ResponseIds:
    return ResponseIds(ids=array(ids), sentence_ends=array(ends))


def row(prompt: int, *responses: ResponseIds, pairs: tuple[tuple[int, int, None], ...] = ((0, 1, None),)) -> EncodedComparison:
    return EncodedComparison(prompt_ids=array(range(prompt)), responses=responses, pairs=pairs, where="p.jsonl line 3")


CHOSEN = response([10, 11, 12, 13, 14, 15], [2, 5])
REJECTED = response([20, 21, 22, 23], [1, 3])
ROW = row(5, CHOSEN, REJECTED)


def lists(result: Shortened) -> list[tuple[list[int], list[int]]]:
    assert result.row is not None
    return [(response.ids.tolist(), response.sentence_ends.tolist()) for response in result.row.responses]


@pytest.mark.parametrize("policy", ["drop", "truncate_prompt", "truncate_response", "error"])
@pytest.mark.parametrize("max_length", [11, 12, None])
def test_what_fits_stays_as_it_is(policy: str, max_length: int | None) -> None:
    result = shorten(ROW, max_length=max_length, policy=policy)  # type: ignore[arg-type]  # a parametrized literal
    assert result.reason == "fits"
    assert result.row is ROW


def test_lengths() -> None:
    assert (ROW.longest, ROW.num_tokens) == (11, 15)


def test_drop() -> None:
    assert shorten(ROW, max_length=10, policy="drop") == Shortened(row=None, reason="dropped")


def test_error() -> None:
    with pytest.raises(UserError, match=r"p\.jsonl line 3: prompt and response are 11 tokens, max_length is 10\. Raise --max_length, or"):
        shorten(ROW, max_length=10, policy="error")


@pytest.mark.parametrize(("max_length", "prompt"), [(10, [1, 2, 3, 4]), (7, [4])])
def test_truncate_prompt_keeps_its_end(max_length: int, prompt: list[int]) -> None:
    result = shorten(ROW, max_length=max_length, policy="truncate_prompt")
    assert result.reason == "shortened"
    assert result.row is not None
    assert result.row.prompt_ids.tolist() == prompt
    assert result.row.responses == ROW.responses


def test_truncate_prompt_needs_a_token_of_it() -> None:
    with pytest.raises(UserError, match=r"p\.jsonl line 3: the response alone is 6 tokens and max_length is 6, so no prompt could stay\."):
        shorten(ROW, max_length=6, policy="truncate_prompt")


@pytest.mark.parametrize(
    ("max_length", "chosen", "rejected"),
    [
        (10, ([10, 11, 12, 13, 14], [2, 4]), ([20, 21, 22, 23], [1, 3])),
        (9, ([10, 11, 12, 13], [2, 3]), ([20, 21, 22, 23], [1, 3])),
        # The cut falls on the end of a sentence.
        (8, ([10, 11, 12], [2]), ([20, 21, 22], [1, 2])),
        (7, ([10, 11], [1]), ([20, 21], [1])),
        (6, ([10], [0]), ([20], [0])),
    ],
)
def test_truncate_response_ends_the_cut_sentence(
    max_length: int, chosen: tuple[list[int], list[int]], rejected: tuple[list[int], list[int]]
) -> None:
    result = shorten(ROW, max_length=max_length, policy="truncate_response")
    assert result.reason == "shortened"
    assert lists(result) == [chosen, rejected]


def test_truncate_response_needs_a_token_of_it() -> None:
    with pytest.raises(UserError, match=r"p\.jsonl line 3: the prompt alone is 5 tokens and max_length is 5, so no response could stay\."):
        shorten(ROW, max_length=5, policy="truncate_response")


@pytest.mark.parametrize(
    ("max_length", "ids", "ends"),
    [
        (9, [10, 11, MARK, 12, 13, 14, MARK], [2, 6]),
        (8, [10, 11, MARK, 12, 13, MARK], [2, 5]),
        (7, [10, 11, MARK, 12, MARK], [2, 4]),
        # No second mark behind the first.
        (6, [10, 11, MARK], [2]),
        (5, [10, 11, MARK], [2]),
        (4, [10, MARK], [1]),
    ],
)
def test_a_boundary_token_ends_what_is_kept(max_length: int, ids: list[int], ends: list[int]) -> None:
    marked = row(2, response([10, 11, MARK, 12, 13, 14, 15, MARK], [2, 7]), response([20, MARK], [1]))
    assert lists(shorten(marked, max_length=max_length, policy="truncate_response", num_closing=1)) == [(ids, ends), ([20, MARK], [1])]


def test_a_boundary_token_alone_is_no_response() -> None:
    marked = row(2, response([10, 11, MARK], [2]), response([20, MARK], [1]))
    with pytest.raises(UserError, match="the prompt alone is 2 tokens and max_length is 3"):
        shorten(marked, max_length=3, policy="truncate_response", num_closing=1)


def test_pairs_that_are_equal_once_cut_go() -> None:
    same_start = [response([1, 2, last], [2]) for last in (3, 4)]
    assert shorten(row(2, *same_start), max_length=4, policy="truncate_response") == Shortened(row=None, reason="indistinct")
    pairs = ((0, 1, None), (0, 2, None), (1, 2, None))
    result = shorten(row(2, *same_start, response([5, 6, 7], [2]), pairs=pairs), max_length=4, policy="truncate_response")
    assert result.row is not None
    assert result.row.pairs == ((0, 2, None), (1, 2, None))


def test_a_group_is_cut_with_its_text() -> None:
    """As in scoring, where nothing is compared: the text stays whole, its spans are those of the sentences that are left."""
    encoded = EncodedResponse(ids=CHOSEN.ids, sentence_ends=CHOSEN.sentence_ends, spans=[Span(0, 3), Span(3, 6)], text="A. B. ")
    group = PromptGroup(prompt_ids=[1, 2], responses=[encoded])
    (cut,) = cut_group(group, max_length=4, policy="truncate_response", num_closing=0, where="here").responses
    assert isinstance(cut, EncodedResponse)
    assert (cut.ids.tolist(), cut.sentence_ends.tolist(), cut.spans, cut.text) == ([10, 11], [1], [Span(0, 3)], "A. B. ")
    assert cut_group(group, max_length=8, policy="error", num_closing=0, where="here") is group
    with pytest.raises(UserError, match="here: prompt and response are 8 tokens, max_length is 7"):
        cut_group(group, max_length=7, policy="error", num_closing=0, where="here")


@st.composite
def any_row(draw: st.DrawFn) -> EncodedComparison:
    responses = []
    for first in (100, 200):
        length = draw(st.integers(1, 20))
        ends = sorted({*draw(st.sets(st.integers(0, length - 1), max_size=5)), length - 1})
        responses.append(response(list(range(first, first + length)), ends))
    return row(draw(st.integers(1, 20)), *responses)


@settings(max_examples=300, deadline=None)
@given(any_row(), st.sampled_from(["truncate_prompt", "truncate_response"]), st.integers(2, 30), st.integers(0, 1))
def test_what_is_kept_is_sound(any_row: EncodedComparison, policy: str, max_length: int, num_closing: int) -> None:
    try:
        result = shorten(any_row, max_length=max_length, policy=policy, num_closing=num_closing)  # type: ignore[arg-type]  # drawn literal
    except UserError:
        whole = any_row.prompt_ids if policy == "truncate_response" else max((r.ids for r in any_row.responses), key=len)
        assert len(whole) >= max_length - num_closing
        return
    assert result.row is not None
    assert result.row.longest <= max_length
    assert len(result.row.prompt_ids)
    for kept, before in zip(result.row.responses, any_row.responses, strict=True):
        ends = kept.sentence_ends.tolist()
        assert ends[-1] == len(kept.ids) - 1
        assert all(a < b for a, b in zip([-1, *ends], ends, strict=False))
        assert set(ends[:-1]) <= set(before.sentence_ends.tolist())
        body = len(kept.ids) - num_closing
        assert np.array_equal(kept.ids[:body], before.ids[:body])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({}, "1,000 rows, the longest 900 tokens; none over max_length 1,024"),
        ({"max_length": None}, "1,000 rows, the longest 900 tokens; no max_length"),
        (
            {"overlong": 25, "dropped": 25, "longest": 4321},
            "1,000 rows, the longest 4,321 tokens; 25 (2.5 %) over max_length 1,024: 25 dropped; 975 kept",
        ),
        (
            {"overlong": 800, "dropped": 800},
            "1,000 rows, the longest 900 tokens; 800 (80.0 %) over max_length 1,024: 800 dropped; 200 kept",
        ),
        (
            {"policy": "truncate_prompt", "overlong": 25, "shortened": 25},
            "1,000 rows, the longest 900 tokens; 25 (2.5 %) over max_length 1,024: 25 prompts cut; 1,000 kept",
        ),
        (
            {"policy": "truncate_response", "overlong": 25, "shortened": 20, "indistinct": 5},
            "1,000 rows, the longest 900 tokens; 25 (2.5 %) over max_length 1,024: 20 rows of responses cut, 5 dropped because their "
            "responses are equal once cut; 995 kept",
        ),
    ],
)
def test_the_report_in_one_line(change: dict[str, object], text: str) -> None:
    counts = dict.fromkeys(("overlong", "dropped", "shortened", "indistinct"), 0)
    fields = {"policy": "drop", "max_length": 1024, "rows": 1000, "longest": 900, **counts, **change}
    assert str(OverlongReport(**fields)) == text  # type: ignore[arg-type]  # keywords from a table
