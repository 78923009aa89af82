"""The segmenters, and the function that makes them."""

from __future__ import annotations

import sys
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, replace
from functools import partial
from operator import sub
from typing import Any

from srm.errors import UserError
from srm.segmentation.config import SegmentationConfig, Segmenter, SegmenterName, Span
from srm.segmentation.limits import join_tiny, split_long
from srm.segmentation.numbering import join_markers, mend_numbering
from srm.segmentation.punkt import load_punkt
from srm.segmentation.punkt_tab import load_punkt_tab
from srm.segmentation.sat import load_sat
from srm.segmentation.scripts import script_starts
from srm.segmentation.structure import read_structure
from srm.segmentation.thinking import behind_thinking

__all__ = ["make_segmenter"]

# As `Span._make`, in half the time.
_to_span = partial(tuple.__new__, Span)
# A base splitter: from a text to the starts of its sentences, in order, the first left out.
Splitter = Callable[[str], list[int]]


def make_segmenter(name: SegmenterName = "punkt", **config: Any) -> Segmenter:
    """The segmenter called `name`.

    Args:
        name: `punkt`: NLTK's Punkt with a built-in list of abbreviations. `punkt_tab`: Punkt with NLTK's downloaded model. `sat`:
            wtpsplit's model. `newline`: every line is a sentence.
        **config: fields of `SegmentationConfig`.

    Raises:
        UserError: a setting is wrong, or what the segmenter needs is not installed.
    """
    known = [field.name for field in fields(SegmentationConfig)]
    if unknown := sorted(set(config) - set(known)):
        raise UserError(f"segmenter: unknown setting {', '.join(unknown)}. Choose from {', '.join(known)}.")
    return _make(SegmentationConfig(name=name, **config))


def _make(config: SegmentationConfig) -> Segmenter:
    return LineSegmenter(config) if config.name == "newline" else StructuredSegmenter(config, _load(config))


def _load(config: SegmentationConfig) -> Splitter:
    if config.name == "punkt":
        return load_punkt(config.abbreviations)
    if config.name == "punkt_tab":
        return load_punkt_tab(config.language)
    return load_sat(config.sat_model)


class LineSegmenter:
    """Every line that is not blank is a sentence, whatever it holds."""

    def __init__(self, config: SegmentationConfig) -> None:
        self.config = config

    def without_limits(self) -> LineSegmenter:
        """See `Segmenter.without_limits`."""
        return LineSegmenter(_unlimited(self.config))

    def segment_batch(self, texts: Sequence[str]) -> list[list[Span]]:
        """See `Segmenter.segment_batch`."""
        return [self.segment(text) for text in texts]

    def segment(self, text: str) -> list[Span]:
        """See `Segmenter.segment`."""
        return _behind_thoughts(text, self._segment, self.config)

    def _segment(self, text: str) -> list[Span]:
        if not text:
            return []
        starts, position = [], 0
        for line in text.split("\n"):
            if line and not line.isspace():
                starts.append(position + len(line) - len(line.lstrip()))
            position += len(line) + 1
        return _spans(text, starts, [], self.config)


class StructuredSegmenter:
    """A base splitter for the prose, and the layout of the text around it."""

    def __init__(self, config: SegmentationConfig, splitter: Splitter) -> None:
        self.config = config
        self._splitter = splitter

    def __reduce__(self) -> tuple[Callable[..., Segmenter], tuple[SegmentationConfig]]:
        # A splitter holds compiled models; a worker process makes its own.
        return _make, (self.config,)

    def without_limits(self) -> StructuredSegmenter:
        """See `Segmenter.without_limits`."""
        return StructuredSegmenter(_unlimited(self.config), self._splitter)

    def segment_batch(self, texts: Sequence[str]) -> list[list[Span]]:
        """See `Segmenter.segment_batch`."""
        return [self.segment(text) for text in texts]

    def segment(self, text: str) -> list[Span]:
        """See `Segmenter.segment`."""
        return _behind_thoughts(text, self._segment, self.config)

    def _segment(self, text: str) -> list[Span]:
        if not text:
            return []
        structure = read_structure(text)
        inside = [*mend_numbering(text, self._splitter(text)), *script_starts(text)]
        starts = sorted({*structure.starts, *_outside(inside, structure.sealed)})
        return _spans(text, join_markers(text, starts), structure.code, self.config)


def _behind_thoughts(text: str, segment: Callable[[str], list[Span]], config: SegmentationConfig) -> list[Span]:
    """`segment` of `text`, or of what is behind its thinking block where that is left out."""
    start = behind_thinking(text) if config.thinking == "left_out" else 0
    return [Span(start + a, start + b) for a, b in segment(text[start:])] if start else segment(text)


def _unlimited(config: SegmentationConfig) -> SegmentationConfig:
    return replace(config, max_chars=sys.maxsize, max_code_chars=sys.maxsize)


def _outside(starts: Iterable[int], sealed: list[tuple[int, int]]) -> Iterable[int]:
    """The `starts` that do not lie strictly inside one of the `sealed` ranges."""
    if not sealed:
        return starts
    begins = [begin for begin, _ in sealed]
    return (start for start in starts if not (at := bisect_right(begins, start - 1)) or start >= sealed[at - 1][1])


def _spans(text: str, starts: list[int], code: list[tuple[int, int]], config: SegmentationConfig) -> list[Span]:
    """Apply the limits to the `starts` of sentences, in order, and turn them into spans; `code` lists the blocks of code, in order."""
    opening = len(text) - len(text.lstrip())
    kept = join_tiny([0, *starts[bisect_right(starts, opening) : bisect_left(starts, len(text))]], text, config.min_chars)
    ends = [*kept[1:], len(text)]
    short = min(config.max_chars, config.max_code_chars)
    if max(map(sub, ends, kept)) > short:
        pieces = zip(kept, ends, strict=True)
        kept = [at for start, end in pieces for at in (start, *(_cuts(text, start, end, code, config) if end - start > short else ()))]
        ends = [*kept[1:], len(text)]
    return list(map(_to_span, zip(kept, ends, strict=True)))


def _cuts(text: str, start: int, end: int, code: list[tuple[int, int]], config: SegmentationConfig) -> Iterator[int]:
    """Where the sentence `text[start:end]` is cut to keep the limits."""
    # Code where a block of it reaches into the sentence; the last one that begins before its end is the one to ask.
    at = bisect_left(code, (end, 0))
    is_code = at > 0 and start < code[at - 1][1]
    limit = config.max_code_chars if is_code else config.max_chars
    return split_long(text, start, start + len(text[start:end].rstrip()), limit, code=is_code)
