"""What a segmenter is, what it returns, and how it is set up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, Protocol, get_args

from srm.errors import UserError

__all__ = ["SegmentationConfig", "Segmenter", "SegmenterName", "Span"]

SegmenterName = Literal["punkt", "punkt_tab", "sat", "newline"]
Thinking = Literal["scored", "left_out"]


class Span(NamedTuple):
    """Characters `text[start:end]`.

    Attributes:
        start: of the first character.
        end: behind the last character.
    """

    start: int
    end: int


class Segmenter(Protocol):
    """Anything that cuts a text into sentences.

    `config` rebuilds the segmenter: `make_segmenter(**segmenter.config.to_dict())`.
    """

    @property
    def config(self) -> SegmentationConfig: ...

    def segment(self, text: str) -> list[Span]:
        """Sentences of `text`, in order, covering it without gaps; `[]` only for `""`.

        With `thinking="left_out"` they cover what is behind the thinking block that opens the text; `[]` where nothing is.

        White space after a sentence belongs to it; white space that opens the text belongs to the first sentence.
        """
        ...

    def segment_batch(self, texts: Sequence[str]) -> list[list[Span]]:
        """Sentences of each of `texts`."""
        ...

    def without_limits(self) -> Segmenter:
        """The same segmenter, but long sentences stay whole."""
        ...


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig:
    """Settings of a segmenter; plain JSON types, because they are saved with the model.

    Attributes:
        name: which base splitter finds the ends of sentences inside prose.
        min_chars: a sentence with fewer letters and digits than this joins its neighbour. 1 joins only bare punctuation.
        max_chars: a longer sentence is split, at a clause mark, else at white space, else anywhere. White space at its end does not count.
        max_code_chars: a longer block of code is split at its blank lines, then, where a piece is still longer, at line ends.
        abbreviations: words that end in a full stop without ending a sentence, beside the built-in ones (`punkt` only).
        language: the model that `punkt_tab` loads.
        sat_model: the model that `sat` loads, a name on the hub or a folder.
        thinking: `left_out`: the thinking block that opens a response (`<think> ... </think>`) has no sentence, and what it changed in the
            model's value is no sentence's reward; `scored`: it is cut like the rest.
    """

    name: SegmenterName = "punkt"
    min_chars: int = 1
    max_chars: int = 500
    max_code_chars: int = 1500
    abbreviations: tuple[str, ...] = ()
    language: str = "english"
    sat_model: str = "sat-3l-sm"
    thinking: Thinking = "scored"

    def __post_init__(self) -> None:
        if self.name not in get_args(SegmenterName):
            raise UserError(f"segmenter: unknown name {self.name!r}. Choose one of {', '.join(get_args(SegmenterName))}.")
        if self.thinking not in get_args(Thinking):
            raise UserError(f"segmenter: `thinking` must be one of {', '.join(get_args(Thinking))}, got {self.thinking!r}.")
        for field, least in (("min_chars", 0), ("max_chars", 8), ("max_code_chars", 8)):
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise UserError(f"segmenter: `{field}` must be an integer of at least {least}, got {value!r}.")
        if not isinstance(self.abbreviations, (list, tuple)) or not all(isinstance(word, str) for word in self.abbreviations):
            raise UserError(f"segmenter: `abbreviations` must be a list of words, got {self.abbreviations!r}.")
        for field in ("language", "sat_model"):
            if not isinstance(getattr(self, field), str):
                raise UserError(f"segmenter: `{field}` must be a string, got {getattr(self, field)!r}.")
        # JSON brings a list back; a frozen, hashable config needs a tuple.
        object.__setattr__(self, "abbreviations", tuple(self.abbreviations))

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON types; `make_segmenter(**config.to_dict())` is the inverse."""
        return {**asdict(self), "abbreviations": list(self.abbreviations)}
