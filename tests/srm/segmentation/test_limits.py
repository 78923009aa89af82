# ruff: noqa: RUF001  # Punctuation of other scripts is the subject of this file.
"""Tiny sentences join, very long ones split."""

from __future__ import annotations

import pytest

from srm.segmentation import make_segmenter


def cut(text: str, **config: int) -> list[str]:
    return [text[start:end] for start, end in make_segmenter("punkt", **config).segment(text)]


@pytest.mark.parametrize(
    ("min_chars", "expected"),
    [
        (0, ["Yes. ", "!!! ", "No. ", "That is all.\n", "---\n\n", "B"]),
        (1, ["Yes. !!! ", "No. ", "That is all.\n---\n\n", "B"]),
        (3, ["Yes. !!! ", "No. That is all.\n---\n\nB"]),
        (4, ["Yes. !!! No. ", "That is all.\n---\n\nB"]),
        (100, ["Yes. !!! No. That is all.\n---\n\nB"]),
    ],
)
def test_min_chars(min_chars: int, expected: list[str]) -> None:
    assert cut("Yes. !!! No. That is all.\n---\n\nB", min_chars=min_chars) == expected


def test_bare_punctuation_at_the_start_joins_the_first_sentence() -> None:
    assert cut("***\n\n!\n\nYes.\n\nNo.") == ["***\n\n!\n\nYes.\n\n", "No."]


def test_letters_of_any_script_count() -> None:
    assert cut("好。是。", min_chars=1) == ["好。", "是。"]
    assert cut("好。是。", min_chars=2) == ["好。是。"]


def test_splits_at_clause_marks_into_even_pieces() -> None:
    text = "one two three, four five six; seven eight nine: ten eleven twelve"
    assert cut(text, max_chars=40) == ["one two three, four five six; ", "seven eight nine: ten eleven twelve"]
    assert cut(text, max_chars=20) == ["one two three, ", "four five six; ", "seven eight nine: ", "ten eleven twelve"]


def test_splits_at_white_space_where_there_is_no_clause_mark() -> None:
    assert cut("one two three four five six", max_chars=14) == ["one two three ", "four five six"]


def test_splits_anywhere_where_there_is_no_white_space() -> None:
    assert cut("abcdefghijklmnopqrstuvwxyz", max_chars=10) == ["abcdefghi", "jklmnopqr", "stuvwxyz"]
    assert cut("好" * 20, max_chars=8) == ["好" * 7, "好" * 7, "好" * 6]


def test_splits_at_full_width_clause_marks() -> None:
    assert cut("第一我来这里，第二我看，第三我走", max_chars=10) == ["第一我来这里，", "第二我看，第三我走"]


@pytest.mark.parametrize("cluster", ["e\u0301", "👨\u200d👩\u200d👧", "❤\ufe0f"])
def test_a_hard_cut_keeps_accents_and_joined_emoji_whole(cluster: str) -> None:
    for offset in range(len(cluster)):
        pieces = cut("a" * (8 + offset) + cluster * 3 + "a" * 8, max_chars=12)
        assert not any(piece[0] in "\u0301\u200d\ufe0f" or piece[-1] == "\u200d" for piece in pieces)


def test_white_space_at_a_cut_stays_before_it() -> None:
    text = "abcdefgh" + " " * 40 + "ijklmnop"
    assert cut(text, max_chars=10) == ["abcdefgh" + " " * 40, "ijklmnop"]


def test_white_space_at_the_end_does_not_count() -> None:
    assert cut("abcdefgh" + " " * 40, max_chars=8) == ["abcdefgh" + " " * 40]


BLOCK = "```\na = 1\nb = 2\n\nc = 3\nd = 4\n\ne = 5\nf = 6\n```\n"


def test_code_is_one_sentence_unless_it_is_long() -> None:
    text = "Look:\n" + BLOCK + "Done."
    assert cut(text, max_chars=8) == ["Look:\n", BLOCK, "Done."]
    assert cut(text, max_code_chars=len(BLOCK.rstrip())) == ["Look:\n", BLOCK, "Done."]


def test_long_code_splits_at_blank_lines() -> None:
    assert cut(BLOCK, max_code_chars=30) == ["```\na = 1\nb = 2\n\n", "c = 3\nd = 4\n\ne = 5\nf = 6\n```\n"]
    assert cut(BLOCK, max_code_chars=20) == ["```\na = 1\nb = 2\n\n", "c = 3\nd = 4\n\n", "e = 5\nf = 6\n```\n"]


def test_long_code_without_blank_lines_splits_at_line_ends() -> None:
    assert cut(BLOCK.replace("\n\n", "\n"), max_code_chars=24) == ["```\na = 1\nb = 2\nc = 3\n", "d = 4\ne = 5\nf = 6\n```\n"]
    assert cut("```\n" + "x" * 30 + "\n```", max_code_chars=16)[0].startswith("```\nxxx")


def test_long_code_without_a_fence_counts_as_code() -> None:
    text = "int f() {\n  a = 1; b = 2;\n  c = 3; d = 4;\n}"
    assert cut(text, max_chars=10) == [text]
    assert cut(text, max_code_chars=30) == ["int f() {\n  a = 1; b = 2;\n  ", "c = 3; d = 4;\n}"]


def test_a_sentence_that_leads_into_code_counts_as_code() -> None:
    text = "use these two lines\nfirst(1, 2);\nsecond(3);"
    assert cut(text, max_chars=30) == [text]


def test_a_terminator_behind_white_space_belongs_to_the_word_before() -> None:
    assert cut("Why ? ! Who knows.", min_chars=0) == ["Why ? ! ", "Who knows."]
