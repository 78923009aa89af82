"""Sentences as tokens: which token ends each of them.

Shape letters: `B` responses, `T` tokens of all responses, `S` sentences of all responses, `C` characters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from srm.segmentation.config import Span

__all__ = ["SentenceTokens", "first_units", "last_tokens", "sentence_ends_from_offsets"]

_IS_WHITE = np.array([chr(byte).isspace() and byte < 128 for byte in range(256)])
_WIDE_SPACE = re.compile(r"[^\S\x00-\x7f]")


class SentenceTokens(NamedTuple):
    """Sentences as tokens.

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
        spans: the sentences, as `Segmenter.segment` returns them: in order, without gaps.
        offsets: (start, end) in characters for every token, as a fast tokenizer's `return_offsets_mapping` returns them.
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
    # The last character of a token is white space only where all of it is.
    first = np.where(start < end, end - 1, -1) if text is None else first_units(_WIDE_SPACE.sub(" ", text).encode("ascii", "replace"), start, end)
    inner = np.array([span.start for span in spans[1:]], dtype=np.int64)
    ends = last_tokens(first, inner, np.array([0, len(offsets)]), np.zeros(len(inner), dtype=np.int64))
    stop = np.append(inner, spans[-1].end)[np.searchsorted(inner, np.maximum.accumulate(first)[ends], side="right")]
    stops = [*stop[:-1].tolist(), spans[-1].end]
    return SentenceTokens(ends.tolist(), [Span(*edge) for edge in zip([spans[0].start, *stops], stops, strict=False)])


def first_units(units: bytes, start: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64 [T]: the first unit of each token `start:end` that is not white space, its first one where all are, -1 where it has none.

    units: a byte for each unit that tokens are counted in, characters or bytes, with every white space as one of ASCII.
    """
    # One more, for empty tokens at the end.
    unit = np.frombuffer(units + b"x", dtype=np.uint8)
    first = start.copy()
    left = np.flatnonzero(_IS_WHITE[unit[start]])
    while left.size:
        first[left] += 1
        left = left[first[left] < end[left]]
        left = left[_IS_WHITE[unit[first[left]]]]
    blank = np.flatnonzero(first >= end)
    first[blank] = np.where(start[blank] < end[blank], start[blank], -1)
    return first


def last_tokens(
    first: NDArray[np.int64], sentence: NDArray[np.int64], cu_tokens: NDArray[np.int64], response: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The last token of each sentence, rising: the rule that `sentence_ends_from_offsets` describes, for many responses at once.

    first: int64 [T], see `first_units`. cu_tokens: int64 [B + 1], offsets of the responses.
    sentence, response: int64 [S], the unit where a sentence begins, its response's first one left out, and its response.
    """
    # The first token of each sentence, or of the next one that has any. Where the response has none, the sentence before takes the rest.
    token = np.minimum(np.searchsorted(np.maximum.accumulate(first), sentence), cu_tokens[response + 1])
    is_end = np.zeros(len(first), dtype=np.bool_)
    is_end[token[token > cu_tokens[response]] - 1] = True
    is_end[cu_tokens[1:][np.diff(cu_tokens) > 0] - 1] = True
    return np.flatnonzero(is_end)
