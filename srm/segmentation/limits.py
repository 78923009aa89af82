# ruff: noqa: RUF001  # Punctuation of other scripts is the subject of this file.
"""Too short and too long: joins tiny sentences to a neighbour and splits very long ones."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache

from srm.segmentation.thinking import TAG

__all__ = ["join_tiny", "split_long"]

# Where a long sentence may be cut, best first.
_SPACE = re.compile(r"\s+")
_CLAUSE = re.compile(r"(?<=[,;:–—)\]”’»\"])\s+|[，、；：،؛၊፣፤፥]\s*")
_LINE_END = re.compile(r"\n\s*")
_BLANK_LINE = re.compile(r"\n[ \t\r\f\v]*\n\s*")
_PROSE_MARKS = (_CLAUSE, _SPACE)
_CODE_MARKS = (_BLANK_LINE, _LINE_END, _SPACE)
# Up to a letter or digit. The tags around a model's thoughts hold none.
_TO_LETTER = rf"(?:{TAG}|(?!{TAG})[\W_])*[^\W_]"
_WORD = re.compile(_TO_LETTER)
_CONTINUES = frozenset("\u200d\ufe0e\ufe0f")


def join_tiny(starts: Sequence[int], text: str, min_chars: int) -> list[int]:
    """`starts`, the first of them 0, without those of sentences that hold fewer than `min_chars` letters and digits.

    A sentence without any (a rule, an emoji, stray punctuation) joins the one before it. A short one stays open and takes in the sentences
    after it until it has enough; what is left open at the end joins the one before it.
    """
    if min_chars == 0:
        return list(starts)
    enough = _letters(min_chars)
    kept, is_full = [0], False
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        if not text[start].isalnum() and _WORD.match(text, start, end) is None:
            continue
        if is_full:
            kept.append(start)
        is_full = min_chars == 1 or enough.match(text, kept[-1], end) is not None
    return kept if is_full or len(kept) == 1 else kept[:-1]


def split_long(text: str, start: int, end: int, max_chars: int, *, code: bool) -> Iterator[int]:
    """Starts of the pieces of a sentence longer than `max_chars`, the first piece left out.

    Cuts code at blank lines, else at line ends, prose at clause marks, either of them else at white space, else anywhere. Pieces come out
    about even: each cut is the best mark nearest to where an even piece would end, and the last piece is never a splinter.
    """
    marks = _CODE_MARKS if code else _PROSE_MARKS
    while (left := end - start) > max_chars:
        even = -(-left // -(-left // max_chars))
        low, high = start + even // 2, start + min(max_chars, left - even // 2)
        cuts = (_nearest(mark, text, low, high, start + even) for mark in marks)
        cut = next(filter(None, cuts), None) or _between_characters(text, start, start + even)
        # All the white space at the cut stays with the piece before it.
        start = cut if (space := _SPACE.match(text, cut)) is None else space.end()
        if start < end:
            yield start


@lru_cache(maxsize=8)
def _letters(count: int) -> re.Pattern[str]:
    return re.compile(f"(?:{_TO_LETTER}){{{count}}}")


def _nearest(mark: re.Pattern[str], text: str, low: int, high: int, aim: int) -> int | None:
    """End of the `mark` in `text[low:high]` that ends nearest to `aim`."""
    return min((match.end() for match in mark.finditer(text, low, high)), key=lambda cut: abs(cut - aim), default=None)


def _between_characters(text: str, start: int, cut: int) -> int:
    """`cut`, moved back so that it parts no accent or joined emoji from its base."""
    for position in range(cut, max(start, cut - 8), -1):
        here, before = text[position], text[position - 1]
        if not unicodedata.combining(here) and here not in _CONTINUES and before != "\u200d":
            return position
    return cut
