"""Sentences of a policy's own token ids: the text they write is cut, and each sentence ends with the token that writes its end.

Shape letters: `B` responses, `L` width of the padded ids, `T` tokens of all responses, `N` sentences of all responses.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from srm.segmentation.byte_table import ByteTable
from srm.segmentation.config import Segmenter
from srm.segmentation.segmenters import make_segmenter
from srm.segmentation.tokens import first_units, last_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["TokenSegmenter", "TokenSentences", "content_lengths"]


_ROWS = 64
# The bytes of white space outside ASCII.
_WIDE_SPACE = re.compile(b"|".join(chr(point).encode() for point in range(0x80, 0x3001) if chr(point).isspace()))


@dataclass(frozen=True, kw_only=True)
class TokenSentences:
    """Sentences of a batch of responses, as tokens.

    ends: int64 [N], index into its response of each sentence's last token, rising strictly inside a response.
    cu_boundaries: int64 [B + 1], offsets into `ends`. A response without text has no sentence.
    lengths: int64 [B], tokens of each response that are text: up to the first end token, else all.
    """

    ends: Tensor
    cu_boundaries: Tensor
    lengths: Tensor

    def tolist(self) -> list[list[int]]:
        """The ends, a list a response."""
        ends, cu = self.ends.tolist(), self.cu_boundaries.tolist()
        return [ends[start:end] for start, end in pairwise(cu)]


class TokenSegmenter:
    """Cuts responses that are token ids into the sentences that `segmenter` finds in their text.

    Args:
        tokenizer: the policy's, or the `ByteTable` of its vocabulary.
        segmenter: from `make_segmenter`; `punkt` where None.
        end_ids: ids that end a response: it and what follows are no text. The tokenizer's eos and pad id where None, none for a
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
            known = (tokenizer.eos_token_id, tokenizer.pad_token_id)
            self.end_ids = frozenset(token for token in known if token is not None) if end_ids is None else frozenset(end_ids)

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
            IndexError: an id outside the vocabulary.
        """
        if ids.dim() != 2 or ids.is_floating_point():
            raise ValueError(f"TokenSegmenter.segment: `ids` must be integers [B, L], got {ids.dtype} {list(ids.shape)}.")
        length_B = content_lengths(ids, self.end_ids, lengths)
        host, length = ids.cpu().numpy(), length_B.cpu().numpy()
        ends = [torch.empty(0, dtype=torch.int64)]
        counts = [0]
        # A few rows at a time, so that their tables stay in the processor's cache.
        for at in range(0, len(host), _ROWS):
            found, cu = self._segment(host[at : at + _ROWS], length[at : at + _ROWS])
            ends.append(torch.from_numpy(found))
            counts += np.diff(cu).tolist()
        cu_boundaries = torch.tensor(counts).cumsum(0)
        return TokenSentences(ends=torch.cat(ends).to(ids.device), cu_boundaries=cu_boundaries.to(ids.device), lengths=length_B)

    def _segment(self, ids: NDArray[np.integer], length: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The last token of each sentence of `ids` [B, L], `length` [B] of them text, and the offsets [B + 1] of each response's."""
        cu_tokens = np.concatenate([[0], np.cumsum(length)])
        written = self.table.write(ids[np.arange(ids.shape[1]) < length[:, None]], cu_tokens)
        sentence: list[int] = []
        counts: list[int] = []
        for text, spans, offset in zip(written.escaped, self.segmenter.segment_batch(written.texts), written.edge[cu_tokens].tolist(), strict=False):
            inner = [start for start, _ in spans[1:]]
            sentence += [offset + start for start in (inner if text.isascii() else _in_bytes(text, inner))]
            counts.append(len(inner))
        units = written.raw if written.raw.isascii() else _WIDE_SPACE.sub(lambda space: b" " * len(space[0]), written.raw)
        first = first_units(units, written.edge[:-1], written.edge[1:])
        ends = last_tokens(first, np.array(sentence, dtype=np.int64), cu_tokens, np.repeat(np.arange(len(counts)), counts))
        cu = np.searchsorted(ends, cu_tokens)
        return ends - np.repeat(cu_tokens[:-1], np.diff(cu)), cu


def _in_bytes(text: str, positions: list[int]) -> Iterator[int]:
    """The bytes before each of the `positions`, which rise, in a text that was decoded with `surrogateescape`."""
    return accumulate(len(text[start:end].encode(errors="surrogateescape")) for start, end in pairwise([0, *positions]))


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
