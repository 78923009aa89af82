"""Comparisons to arrays: order, sharing, the limit, the progress bar, and which row an error names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from srm.data import Comparison, ResponseEncoder, encode_comparisons, read_comparisons
from srm.errors import UserError
from srm.segmentation import make_segmenter

Make = Callable[..., PreTrainedTokenizerFast]


def comparison(number: int, *, prompt: Any = None, responses: tuple[str, ...] = ("Yes. It is.", "No.")) -> Comparison:
    return Comparison(
        prompt=f"Question {number}?" if prompt is None else prompt,
        responses=responses,
        pairs=((0, 1, None),),
        id=str(number),
        where=f"p.jsonl line {number}",
    )


def test_rows_are_what_the_encoder_says(encoder: ResponseEncoder) -> None:
    comparisons = [comparison(number, responses=(f"Yes, {number}. Sure.", "No.", "Well...")) for number in range(300)]
    rows, report = encode_comparisons(comparisons, encoder, max_length=None)
    assert (report.rows, report.kept, report.overlong, report.max_length) == (300, 300, 0, None)
    assert report.longest == max(row.longest for row in rows)
    for row, before in zip(rows, comparisons, strict=True):
        assert row.where == before.where
        assert row.pairs == before.pairs
        assert row.prompt_ids.tolist() == encoder.encode_prompt(before.prompt)
        assert row.prompt_ids.dtype == np.int32
        for arrays, text in zip(row.responses, before.responses, strict=True):
            expected = encoder.encode_response(before.prompt, text)
            assert (arrays.ids.tolist(), arrays.sentence_ends.tolist()) == (expected.ids.tolist(), expected.sentence_ends.tolist())
            assert arrays.ids.dtype == arrays.sentence_ends.dtype == np.int32


def test_equal_texts_are_encoded_once(encoder: ResponseEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []
    original = encoder.encode_responses
    monkeypatch.setattr(encoder, "encode_responses", lambda new: texts.extend(new) or original(new))
    rows, _ = encode_comparisons([comparison(number % 2) for number in range(400)], encoder, max_length=None)
    assert sorted(texts) == ["No.", "Yes. It is."]
    assert rows[0].responses[0] is rows[399].responses[0]
    assert rows[0].prompt_ids is rows[398].prompt_ids
    # Shared, so nobody may write into it.
    with pytest.raises(ValueError, match="read-only"):
        rows[0].prompt_ids[0] = 1


@pytest.mark.parametrize(("policy", "kept"), [("drop", 1), ("truncate_prompt", 2), ("truncate_response", 2)])
def test_the_limit(policy: Any, kept: int, encoder: ResponseEncoder) -> None:
    comparisons = [comparison(1), comparison(2, responses=("Yes. " * 20 + "End", "No."))]
    short = encode_comparisons(comparisons[:1], encoder, max_length=None)[0][0].longest
    limit = short + (30 if policy == "truncate_prompt" else 0)
    rows, report = encode_comparisons(comparisons, encoder, max_length=limit, overlong=policy)
    assert len(rows) == report.kept == kept
    assert report.overlong == 1
    assert all(row.longest <= limit for row in rows)


def test_the_limit_with_boundary_tokens(marked_encoder: ResponseEncoder, chatml: PreTrainedTokenizerFast) -> None:
    mark = chatml.convert_tokens_to_ids("<END>")
    comparisons = [comparison(1, responses=("Yes. It is so and not otherwise.", "No. Never."))]
    whole = encode_comparisons(comparisons, marked_encoder, max_length=None)[0][0]
    for cut in range(1, 10):
        (row,), _ = encode_comparisons(comparisons, marked_encoder, max_length=whole.longest - cut, overlong="truncate_response")
        for response in row.responses:
            assert np.flatnonzero(response.ids == mark).tolist() == response.sentence_ends.tolist()


def test_errors_name_the_row(encoder: ResponseEncoder, make_tokenizer: Make) -> None:
    with pytest.raises(UserError, match=r"^p\.jsonl line 2: prompt and response are \d+ tokens, max_length is 60\."):
        encode_comparisons([comparison(1), comparison(2, prompt="long " * 50)], encoder, max_length=60, overlong="error")
    with pytest.raises(UserError, match=r"^p\.jsonl line 2: the prompt alone is \d+ tokens and max_length is 60"):
        encode_comparisons([comparison(1), comparison(2, prompt="long " * 50)], encoder, max_length=60, overlong="truncate_response")
    with pytest.raises(UserError, match=r"^p\.jsonl line 2: `response` is empty\. Fix or delete the row, or pass --skip_bad_rows"):
        encode_comparisons([comparison(1), comparison(2, responses=("Yes.", " "))], encoder, max_length=60)
    llama = ResponseEncoder(make_tokenizer("llama"), make_segmenter("punkt"))
    with pytest.raises(UserError, match=r"^p\.jsonl line 2: the chat template refuses the messages \(system\): Roles must alternate"):
        encode_comparisons([comparison(1), comparison(2, prompt=[{"role": "system", "content": "x"}])], llama, max_length=None)


def test_a_response_without_tokens_names_the_row(chatml: PreTrainedTokenizerFast, make_tokenizer: Make) -> None:
    # This tokenizer knows ASCII only and drops the rest.
    ascii_only = ResponseEncoder(make_tokenizer("chatml", byte_level=False), make_segmenter("punkt"))
    ascii_only.tokenizer.backend_tokenizer.pre_tokenizer = None
    with pytest.raises(
        UserError,
        match=r"^p\.jsonl line 2: the tokenizer makes no token of the response 'é'\. Fix or delete the row, or pass --skip_bad_rows",
    ):
        encode_comparisons([comparison(1), comparison(2, responses=("Yes.", "é"))], ascii_only, max_length=None)


def test_bad_rows_are_dropped_on_demand(make_tokenizer: Make, caplog: pytest.LogCaptureFixture) -> None:
    llama = ResponseEncoder(make_tokenizer("llama"), make_segmenter("punkt"))
    bad = comparison(2, prompt=[{"role": "system", "content": "x"}])
    rows, report = encode_comparisons([comparison(1), bad, comparison(3)], llama, max_length=None, skip_bad_rows=True)
    assert [row.where for row in rows] == ["p.jsonl line 1", "p.jsonl line 3"]
    assert (report.rows, report.overlong, report.kept) == (2, 0, 2)
    assert "the rows: dropped 1 of 3 rows that cannot be used: p.jsonl line 2: the chat template refuses" in caplog.text
    with pytest.raises(UserError, match="none of the 1 rows can be used"):
        encode_comparisons([bad], llama, max_length=None, skip_bad_rows=True)


def test_nothing_left(encoder: ResponseEncoder) -> None:
    with pytest.raises(UserError, match=r"no row is left: 1 rows, .* over max_length 3: 1 dropped; 0 kept\. Raise --max_length"):
        encode_comparisons([comparison(1)], encoder, max_length=3)


def test_no_rows_are_no_error(encoder: ResponseEncoder) -> None:
    rows, report = encode_comparisons([], encoder, max_length=3)
    assert (rows, report.rows) == ([], 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_length": 1}, r"`max_length` must be at least 2 .* got 1"),
        ({"max_length": 8, "overlong": "cut"}, "`overlong` must be one of drop, truncate_prompt, truncate_response, error, got 'cut'"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str, encoder: ResponseEncoder) -> None:
    with pytest.raises(ValueError, match=message):
        encode_comparisons([comparison(1)], encoder, **arguments)


@pytest.mark.parametrize(("progress", "drawn"), [(True, True), (False, False), (None, False)])
def test_the_progress_bar(progress: bool | None, drawn: bool, encoder: ResponseEncoder, capsys: pytest.CaptureFixture[str]) -> None:
    """pytest's stderr is no terminal, so None draws nothing."""
    encode_comparisons([comparison(1)], encoder, max_length=None, progress=progress)
    captured = capsys.readouterr()
    assert ("Tokenising" in captured.err) == drawn
    assert ("1/1" in captured.err) == drawn
    assert captured.out == ""


def test_real_pairs(shared_data: Path, encoder: ResponseEncoder) -> None:
    comparisons = read_comparisons(str(shared_data / "pairs_train.jsonl.gz"), max_pairs=150)
    rows, report = encode_comparisons(comparisons, encoder, max_length=6000)
    assert report.rows == 150
    tokenizer = encoder.tokenizer
    for row in rows:
        before = next(comparison for comparison in comparisons if comparison.where == row.where)
        for response, text in zip(row.responses, before.responses, strict=True):
            assert tokenizer.decode(response.ids, clean_up_tokenization_spaces=False) == text
            ends = response.sentence_ends.tolist()
            assert ends[-1] == len(response.ids) - 1
            assert all(a < b for a, b in zip([-1, *ends], ends, strict=False))
