"""Sentences of a policy's own token ids: the text they write is cut, and each sentence ends with the token that writes its end.

Shape letters: `B` responses, `L` width of the padded ids, `T` tokens of all responses, `N` sentences of all responses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from srm.segmentation.byte_table import ByteTable
from srm.segmentation.config import Segmenter
from srm.segmentation.end_ids import end_ids as find_end_ids
from srm.segmentation.segmenters import make_segmenter
from srm.segmentation.tokens import first_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["TokenSegmenter", "TokenSentences", "content_lengths"]


_START = itemgetter(0)
# Responses whose tables fit the processor's cache together.
_ROWS = 160


@dataclass(frozen=True, kw_only=True)
class TokenSentences:
    """Sentences of a batch of responses, as tokens.

    Attributes:
        ends: int64 [N], index into its response of each sentence's last token, rising strictly inside a response.
        cu_boundaries: int64 [B + 1], offsets into `ends`. A response without text has no sentence.
        lengths: int64 [B], tokens of each response that are text: up to the first end token, else all.
        opening: int64 [B], tokens of each response before its first sentence: those of a thinking block that is left out, else 0.
        is_blank: bool [B], responses that write nothing, or white space alone. Segmenters take white space alone for a sentence.
    """

    ends: Tensor
    cu_boundaries: Tensor
    lengths: Tensor
    opening: Tensor
    is_blank: Tensor

    def tolist(self) -> list[list[int]]:
        """The ends, a list a response."""
        ends, cu = self.ends.tolist(), self.cu_boundaries.tolist()
        return [ends[start:end] for start, end in pairwise(cu)]


class TokenSegmenter:
    """Cuts responses that are token ids into the sentences that `segmenter` finds in their text.

    Args:
        tokenizer: the policy's, or the `ByteTable` of its vocabulary.
        segmenter: from `make_segmenter`; `punkt` where None.
        end_ids: ids that end a response: it and what follows are no text. Those of `srm.segmentation.end_ids` where None, none for a
            `ByteTable`.

    Raises:
        UserError: a tokenizer whose tokens do not stand for bytes.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | ByteTable,
        segmenter: Segmenter | None = None,
        *,
        end_ids: Iterable[int] | None = None,
    ) -> None:
        self.segmenter = segmenter or make_segmenter()
        if isinstance(tokenizer, ByteTable):
            self.table = tokenizer
            self.end_ids = frozenset(end_ids or ())
        else:
            self.table = ByteTable.from_tokenizer(tokenizer)
            self.end_ids = find_end_ids(tokenizer) if end_ids is None else frozenset(end_ids)

    def segment(self, ids: Tensor, lengths: Tensor | None = None) -> TokenSentences:
        """Sentences of padded responses.

        A token belongs to the sentence of its first character that is not white space, as in `sentence_ends_from_offsets`. The last
        sentence, finished or not, ends with the last token of the text. Those behind the text belong to no sentence.

        Args:
            ids: int64 or int32 [B, L], a response a row, padded on the right. A row is text up to its first end id, which may be absent.
            lengths: int [B], an upper bound on each row's text; L where None. Needed where rows are padded with an id that is no end id.

        Returns:
            The sentences, on the device of the ids. Ids on an accelerator are copied to the host once.

        Raises:
            ValueError: `ids` that are not [B, L].
            IndexError: a negative id.
        """
        if ids.dim() != 2 or ids.is_floating_point():
            raise ValueError(f"TokenSegmenter.segment: `ids` must be integers [B, L], got {ids.dtype} {list(ids.shape)}.")
        host = ids.cpu()
        bound = torch.full(ids.shape[:1], ids.shape[1]) if lengths is None else lengths.cpu()
        nothing = torch.empty(0, dtype=torch.int64)
        ends, counts, length, opening = [nothing], [torch.zeros(1, dtype=torch.int64)], [nothing], [nothing]
        blank = [torch.empty(0, dtype=torch.bool)]
        for rows, most in zip(host.split(_ROWS), bound.split(_ROWS), strict=True):
            length.append(content_lengths(rows, self.end_ids, most))
            found, number, before, is_blank = self._segment(rows.numpy(), length[-1].numpy())
            ends.append(torch.from_numpy(found))
            counts.append(torch.from_numpy(number))
            opening.append(torch.from_numpy(before))
            blank.append(torch.from_numpy(is_blank))
        return TokenSentences(
            ends=torch.cat(ends).to(ids.device),
            cu_boundaries=torch.cat(counts).cumsum(0).to(ids.device),
            lengths=torch.cat(length).to(ids.device),
            opening=torch.cat(opening).to(ids.device),
            is_blank=torch.cat(blank).to(ids.device),
        )

    def _segment(
        self, ids: NDArray[np.integer], length: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """The last token of each sentence of `ids` [B, L], `length` [B] of them text, and [B] sentences, tokens before them, and blanks."""
        cu_tokens = np.concatenate([[0], np.cumsum(length)])
        written = self.table.write(ids[np.arange(ids.shape[1]) < length[:, None]], cu_tokens)
        starts: list[int] = []
        counts: list[int] = []
        for text, spans in zip(written.escaped, self.segmenter.segment_batch(written.texts), strict=True):
            characters = map(_START, spans)
            starts.extend(characters if text.isascii() else _in_bytes(text, characters))
            counts.append(len(spans))
        edge, count = written.edge, np.array(counts, dtype=np.int64)
        sentence, response = np.array(starts, dtype=np.int64), np.repeat(np.arange(len(count)), count)
        # A response opens with its first sentence, or with a block that has none: the block ends like a sentence, and is taken off below.
        is_first = np.diff(response, prepend=-1) > 0
        left_out = edge[cu_tokens[1:]] > edge[cu_tokens[:-1]]
        left_out[response[is_first]] = sentence[is_first] > 0
        is_inner = ~is_first | left_out[response]
        sentence, response = sentence[is_inner], response[is_inner]
        token = first_tokens(edge[:-1], edge[1:], edge[cu_tokens[response]] + sentence, written.raw)
        # A sentence without a token joins the one before; tokens belong to a sentence of their own response.
        token = np.minimum(token, cu_tokens[response + 1])
        is_end = np.zeros(len(edge) - 1, dtype=np.bool_)
        is_end[token[token > cu_tokens[response]] - 1] = True
        is_end[cu_tokens[1:][length > 0] - 1] = True
        ends = np.flatnonzero(is_end)
        first = np.searchsorted(ends, cu_tokens)
        number = np.diff(first)
        ends -= np.repeat(cu_tokens[:-1], number)
        has_block = left_out & (number > 0)
        opening = np.zeros(len(number), dtype=np.int64)
        opening[has_block] = ends[first[:-1][has_block]] + 1
        is_blank = np.array([not text or text.isspace() for text in written.texts], dtype=np.bool_)
        return np.delete(ends, first[:-1][has_block]), number - has_block, opening, is_blank


def _in_bytes(text: str, positions: Iterable[int]) -> Iterator[int]:
    """The bytes before each of the `positions`, which rise, in a text that was decoded with `surrogateescape`."""
    return accumulate(len(text[start:end].encode(errors="surrogateescape")) for start, end in pairwise(chain([0], positions)))


def content_lengths(ids: Tensor, end_ids: Iterable[int], lengths: Tensor | None = None) -> Tensor:
    """How many tokens of each row come before its first end id.

    Args:
        ids: int [B, L].
        end_ids: the ids that end a response, eos and pad as a rule.
        lengths: int [B], at most so many; the width where None.

    Returns:
        int64 [B].
    """
    host = ids.cpu().numpy()
    number, width = host.shape
    bound = np.full(number, width) if lengths is None else lengths.cpu().numpy().clip(0, width)
    # An end behind each row, so that every row has one.
    is_end = np.ones((number, width + 1), dtype=np.bool_)
    is_end[:, :width] = False
    for token in end_ids:
        is_end[:, :width] |= host == token
    return torch.from_numpy(np.minimum(is_end.argmax(1), bound)).to(ids.device)
