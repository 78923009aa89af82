"""Sentences as tokens: which token ends each of them.

Shape letters: `T` tokens, `S` sentences but the first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from srm.segmentation.config import Span

__all__ = ["SentenceTokens", "first_tokens", "opening_tokens", "sentence_ends_from_offsets"]

# White space outside ASCII.
_WIDE = "".join(chr(point) for point in range(0x80, 0x3001) if chr(point).isspace())
_WIDE_SPACE = re.compile(f"[{_WIDE}]")
_WIDE_BYTES = tuple(space.encode() for space in _WIDE)
_IS_WHITE = np.array([chr(byte).isspace() and byte < 128 for byte in range(256)])


class SentenceTokens(NamedTuple):
    """Sentences as tokens.

    Attributes:
        ends: index of each sentence's last token, strictly increasing; the last one is the last token.
        spans: the sentences' characters, one for each end; a sentence that owned no token has joined its neighbour.
    """

    ends: list[int]
    spans: list[Span]


def sentence_ends_from_offsets(spans: Sequence[Span], offsets: Sequence[tuple[int, int]], *, text: str | None = None) -> SentenceTokens:
    """The last token of every sentence, through the tokenizer's character offsets.

    A token belongs to the sentence that holds the first character of it that is not white space. So `" the"` belongs to the sentence
    that `the` opens though its space closes the one before, and a token that covers the end of one sentence and the start of the next
    belongs to the first of the two.

    A token never belongs to an earlier sentence than the token before it. That settles byte-level tokens, several of which may share
    one character, and zero-width tokens (end-of-text, trimmed white space), which stay with the token before them.

    A sentence that owns no token joins the next one that does, at the end of the text the one before.

    Args:
        spans: the sentences, as `Segmenter.segment` returns them: in order, without gaps, none but the first opening with white space.
        offsets: (start, end) in characters for every token, in order, as a fast tokenizer's `return_offsets_mapping` returns them.
        text: the text the spans and offsets point into. Without it a token that covers a boundary is taken to open with white space and
            goes to the later sentence, which is right except where sentences follow each other without white space (Chinese, Japanese).

    Raises:
        ValueError: tokens have no sentence to belong to.
    """
    if not offsets:
        return SentenceTokens([], [])
    if not spans:
        raise ValueError(f"sentence_ends_from_offsets: {len(offsets)} tokens but no sentence. Segment the text the tokens came from.")
    start, end = np.array(offsets, dtype=np.int64).T
    if end.max() > spans[-1].end:
        raise ValueError(
            f"sentence_ends_from_offsets: the tokens reach character {end.max()}, the sentences end at {spans[-1].end}. "
            "Pass spans and offsets of the same text."
        )
    sentence = np.array([span.start for span in spans[1:]], dtype=np.int64)
    token = first_tokens(start, end, sentence, None if text is None else _units(text))
    inner = (token > 0) & (token < len(offsets))
    opening, at = np.unique(token[inner], return_index=True)
    stops = [*sentence[inner][at].tolist(), spans[-1].end]
    ends = [*(opening - 1).tolist(), len(offsets) - 1]
    return SentenceTokens(ends, [Span(*edge) for edge in zip([spans[0].start, *stops], stops, strict=False)])


def opening_tokens(spans: Sequence[Span], offsets: Sequence[tuple[int, int]], text: str) -> int:
    """How many tokens stand before the first sentence, by the rule of `sentence_ends_from_offsets`: those of a block that is left out.

    Args:
        spans: the sentences. Without any, all tokens are before them.
        offsets: as in `sentence_ends_from_offsets`.
        text: what they point into.
    """
    if not spans:
        return len(offsets)
    if not spans[0].start or not offsets:
        return 0
    start, end = np.array(offsets, dtype=np.int64).T
    return int(first_tokens(start, end, np.array([spans[0].start], dtype=np.int64), _units(text))[0])


def _units(text: str) -> bytes:
    """`text` as `first_tokens` reads characters."""
    return _WIDE_SPACE.sub(" ", text).encode("ascii", "replace")


def _wide_space_before(raw: bytes, position: int) -> int:
    """Bytes of the white space outside ASCII that ends at `position` of UTF-8; 0 where none does."""
    return next((len(space) for space in _WIDE_BYTES if raw.endswith(space, 0, position)), 0)


def first_tokens(start: NDArray[np.int64], end: NDArray[np.int64], sentence: NDArray[np.int64], units: bytes | None) -> NDArray[np.int64]:
    """int64 [S]: the first token of each sentence, `T` where none is left: the rule that `sentence_ends_from_offsets` describes.

    It is the first token that reaches into the sentence and has nothing but white space before it.

    Args:
        start, end: int64 [T], the units each token covers, characters or bytes. They never fall, but empty tokens may lie anywhere.
        sentence: int64 [S], where the sentences begin, not with white space.
        units: the text as UTF-8 where units are bytes; where they are characters, a byte for each, with every white space as one of ASCII.
            None: all that stands before a sentence counts as white space.
    """
    is_empty = start >= end
    if is_empty.any():
        # They stay with the token before them.
        start, end = (np.maximum.accumulate(np.where(is_empty, 0, edge)) for edge in (start, end))
    token = np.searchsorted(end, sentence, side="right")
    if units is None:
        return token
    unit = np.frombuffer(units, dtype=np.uint8)
    black_until = sentence.copy()
    left = np.arange(len(sentence))
    while left.size:
        left = left[black_until[left] > 0]
        before = unit[black_until[left] - 1]
        size = _IS_WHITE[before].astype(np.int64)
        for index in np.flatnonzero(before >= 0x80):
            # Rare: looked at one by one, which is cheaper than a search through all of the text.
            size[index] = _wide_space_before(units, int(black_until[left[index]]))
        black_until[left] -= size
        left = left[size > 0]
    # Where a token begins before its sentence and holds more than white space of the one before, the sentence begins with the next.
    late = np.flatnonzero(start[np.minimum(token, len(start) - 1)] < black_until)
    token[late] = np.maximum(token[late], np.searchsorted(start, black_until[late]))
    return token
