"""Sentences of a policy's own token ids, by the text segmenter's rules, vectorised on the ids' device.

Shape letters: `B` responses, `L` width of the padded ids, `T` tokens of all responses, `N` sentences of all responses.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from srm.errors import UserError
from srm.segmentation.byte_table import ByteTable
from srm.segmentation.characters import positions
from srm.segmentation.config import SegmentationConfig
from srm.segmentation.stream import PAD, Stream
from srm.segmentation.vector_limits import join_bare, join_markers, split_long
from srm.segmentation.vector_lines import read_lines, split_lines
from srm.segmentation.vector_prose import Words, foreign_starts, mend_numbering, prose_starts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["TokenSegmenter", "TokenSentences", "content_lengths"]


@dataclass(frozen=True, kw_only=True)
class TokenSentences:
    """Sentences of a batch of responses, as tokens.

    ends: int64 [N], index into its response of each sentence's last token, rising strictly inside a response.
    cu_sentences: int64 [B + 1], offsets into `ends`. A response without text has no sentence.
    lengths: int64 [B], tokens of each response that are text: up to the first end token, else all.
    """

    ends: Tensor
    cu_sentences: Tensor
    lengths: Tensor

    def tolist(self) -> list[list[int]]:
        """The ends, a list a response."""
        ends, cu = self.ends.tolist(), self.cu_sentences.tolist()
        return [ends[start:end] for start, end in pairwise(cu)]


class TokenSegmenter:
    """Cuts responses into sentences without leaving token ids.

    tokenizer: the policy's, or the `ByteTable` of its vocabulary.
    config: the text segmenter's settings, whose boundaries these are to be. Rules exist for `punkt` and `newline` with `min_chars` 0 or 1.
    end_ids: ids that end a response: it and what follows are no text. The tokenizer's eos and pad id where None, none for a `ByteTable`.

    Raises:
        UserError: settings without vectorised rules, or a tokenizer whose tokens do not stand for bytes.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | ByteTable,
        config: SegmentationConfig | None = None,
        *,
        end_ids: Iterable[int] | None = None,
    ) -> None:
        self.config = config or SegmentationConfig()
        if self.config.name not in ("punkt", "newline"):
            raise UserError(
                f"TokenSegmenter: no rules on ids for the segmenter {self.config.name!r}, which runs a model on text. "
                "Use `punkt` or `newline`, or score text with `score`."
            )
        if self.config.min_chars > 1:
            raise UserError(f"TokenSegmenter: `min_chars` must be 0 or 1, got {self.config.min_chars}. Score text with `score`.")
        if isinstance(tokenizer, ByteTable):
            self.table = tokenizer
            self.end_ids = frozenset(end_ids or ())
        else:
            self.table = ByteTable.from_tokenizer(tokenizer)
            known = (tokenizer.eos_token_id, tokenizer.pad_token_id)
            self.end_ids = frozenset(token for token in known if token is not None) if end_ids is None else frozenset(end_ids)
        self._words: Words | None = None
        self._words_device: torch.device | None = None

    def segment(self, ids: Tensor, lengths: Tensor | None = None) -> TokenSentences:
        """Sentences of padded responses.

        ids: int64 or int32 [B, L], a response a row, padded on the right. A row is text up to its first end id, which may be absent.
        lengths: int [B], an upper bound on each row's text; L where None. Needed where rows are padded with an id that is no end id.

        A token belongs to the sentence of its first character that is not white space. The last sentence, finished or not, ends with the
        last token of the text. Tokens are never changed, and those behind the text belong to no sentence.

        Raises:
            ValueError: `ids` that are not [B, L]. IndexError: an id outside the vocabulary.
        """
        if ids.dim() != 2 or ids.is_floating_point():
            raise ValueError(f"TokenSegmenter.segment: `ids` must be integers [B, L], got {ids.dtype} {list(ids.shape)}.")
        length_B = content_lengths(ids, self.end_ids, lengths)
        inside = torch.arange(ids.shape[1], device=ids.device) < length_B[:, None]
        packed = ids.flatten().index_select(0, positions(inside.flatten())).to(torch.int64)
        return self.segment_packed(packed, torch.cat([length_B.new_zeros(1), length_B.cumsum(0)]))

    @torch.no_grad()
    def segment_packed(self, ids: Tensor, cu_tokens: Tensor) -> TokenSentences:
        """Sentences of responses that lie behind one another; every id counts as text.

        ids: int64 [T]. cu_tokens: int64 [B + 1], offsets of the responses.
        """
        self.table.check(ids)
        length_B = cu_tokens.diff()
        number = length_B.numel()
        # A blank line behind each response keeps its layout apart from the next one's.
        separated = ids.new_full((ids.numel() + number,), self.table.separator)
        cu_separated = cu_tokens + torch.arange(number + 1, device=ids.device)
        is_token = torch.ones_like(separated, dtype=torch.bool).index_fill_(0, cu_separated[1:] - 1, False)
        separated.scatter_(0, positions(is_token), ids)
        codes, offset = self.table.expand_codes(separated)
        first = offset[cu_separated]
        stream = Stream(code=torch.nn.functional.pad(codes, (PAD, PAD), value=10), text_start=first[:-1], text_end=first[1:] - 2)
        starts = self._starts(stream) if stream.word_start.numel() else first[:0]
        return _to_tokens(stream, starts, offset, cu_tokens)

    def _starts(self, stream: Stream) -> Tensor:
        """Characters where sentences begin, in order."""
        line = split_lines(stream)
        lines = read_lines(stream, line)
        words = stream.word_start
        begins = torch.zeros_like(words, dtype=torch.bool)
        foreign = words[:0]
        if self.config.name == "newline":
            begins.index_fill_(0, line.first, True)
        else:
            begins.index_fill_(0, line.first[lines.opens], True)
            inner = mend_numbering(stream, prose_starts(stream, self._known_words(words.device)))
            begins.index_fill_(0, inner[~lines.is_sealed(words[inner])], True)
            foreign = foreign_starts(stream)
        # Every text begins with its first word, whatever stands there.
        opening = torch.searchsorted(words, torch.cat([stream.text_start, words.new_full((1,), stream.num_characters)]))
        begins.index_fill_(0, opening[:-1][opening.diff() > 0], True)
        starts = words[positions(begins)]
        if foreign.numel():
            foreign = foreign[~lines.is_sealed(foreign) & (foreign < stream.text_end[stream.text_of(foreign)])]
            starts = torch.cat([starts, foreign]).unique()
        if self.config.name == "punkt":
            starts = join_markers(stream, starts)
        text = stream.text_of(starts)
        ends = torch.cat([starts[1:], stream.text_end[-1:]]).minimum(stream.text_end[text])
        if self.config.min_chars:
            keep = positions(join_bare(stream, starts, ends, text))
            starts, text = starts[keep], text[keep]
            ends = torch.cat([starts[1:], stream.text_end[-1:]]).minimum(stream.text_end[text])
        limits = {"max_chars": self.config.max_chars, "max_code_chars": self.config.max_code_chars}
        cuts = split_long(stream, line, lines, starts, ends, **limits)
        return torch.cat([starts, cuts]).sort().values if cuts.numel() else starts

    def _known_words(self, device: torch.device) -> Words:
        if self._words is None or self._words_device != device:
            self._words, self._words_device = Words(self.config.abbreviations, device), device
        return self._words


def content_lengths(ids: Tensor, end_ids: Iterable[int], lengths: Tensor | None = None) -> Tensor:
    """int64 [B]: how many tokens of each row of `ids` [B, L] come before its first end id, at most `lengths` [B]."""
    width = ids.shape[1]
    bound = ids.new_full(ids.shape[:1], width, dtype=torch.int64)
    if lengths is not None:
        bound = lengths.to(bound).clamp(0, width)
    ended = torch.zeros_like(ids, dtype=torch.bool)
    for token in end_ids:
        ended |= ids == token
    return torch.where(ended.any(1), ended.to(torch.uint8).argmax(1), bound).minimum(bound) if width else bound


def _to_tokens(stream: Stream, starts: Tensor, offset: Tensor, cu_tokens: Tensor) -> TokenSentences:
    """The last token of the sentence before each start that is not its text's first, and the last token of each response.

    offset: the first character of each token; behind the tokens of each response lies one more, which parts it from the next.
    """
    text = stream.text_of(starts)
    inner = positions(text[1:] == text[:-1]) + 1
    starts, text = starts[inner], text[inner]
    # The token that holds the start. Tokens that begin no character come before it at the same place, so look from the right.
    token = torch.searchsorted(offset, starts, right=True) - 1
    word = (torch.searchsorted(stream.word_start, starts) - 1).clamp(min=0)
    # Only white space, or nothing, between the token's first character and the start: the token opens the new sentence.
    black_until = torch.where(stream.at(starts, -1) > 32, starts, stream.word_end[word]) if starts.numel() else starts
    ends = torch.where(offset[token] >= black_until, token - 1, token) - text
    length_B = cu_tokens.diff()
    is_end = torch.zeros(offset.numel(), dtype=torch.bool, device=ends.device)
    is_end[ends[ends >= cu_tokens[text]]] = True
    is_end[cu_tokens[1:][length_B > 0] - 1] = True
    ends = positions(is_end)
    cu_sentences = torch.searchsorted(ends, cu_tokens)
    first = torch.repeat_interleave(cu_tokens[:-1], cu_sentences.diff(), output_size=ends.numel())
    return TokenSentences(ends=ends - first, cu_sentences=cu_sentences, lengths=length_B)
