"""The rules of `limits` on all sentences of a `Stream` at once.

Shape letters: `S` sentences.
"""

from __future__ import annotations

import torch
from torch import Tensor

from srm.segmentation.characters import Code, is_one_of, lookup, num_leading, positions
from srm.segmentation.stream import Stream
from srm.segmentation.vector_lines import Bounds, Lines

__all__ = ["join_bare", "join_markers", "split_long"]

_LOOK = 8


def join_markers(stream: Stream, starts: Tensor) -> Tensor:
    """`starts` without those behind a sentence that is only the marker of a list."""
    near = positions(starts[1:] - starts[:-1] <= _LOOK)
    begin = starts[near]
    length = starts[near + 1] - begin
    head = stream.window(begin, _LOOK)
    opening = (head[:, 0] == ord("(")).to(torch.int64)
    column = torch.arange(_LOOK, device=starts.device)
    digits = (num_leading(is_one_of(head, "0123456789") | (column < opening[:, None])) - opening).clamp(max=3)
    second = head.gather(1, opening[:, None]).squeeze(1)
    letter = (second | 32 >= 97) & (second | 32 <= 122)
    size = opening + torch.where(digits > 0, digits, letter.to(torch.int64))
    close = head.gather(1, size.clamp(max=_LOOK - 1)[:, None]).squeeze(1)
    rest = (column > size[:, None]) & (column < length[:, None])
    blank = (~rest | (head <= 32)).all(1)
    breaks = ((head == 10) & rest).sum(1)
    bare = (size > opening) & is_one_of(close, ".)") & blank & (breaks <= 1)
    return starts[positions(torch.ones_like(starts, dtype=torch.bool).index_fill_(0, near[bare] + 1, False))]


def join_bare(stream: Stream, starts: Tensor, ends: Tensor, text: Tensor) -> Tensor:
    """Which sentences stay when those without a letter or digit join the one before them, at the front of a text the one behind."""
    full = _has_letter(stream, starts, ends)
    first = torch.searchsorted(text, text)
    count = full.to(torch.int64).cumsum(0)
    earlier = count - full.to(torch.int64) - (count[first] - full[first].to(torch.int64))
    at = torch.arange(starts.numel(), device=starts.device)
    return (at == first) | full & (earlier > 0)


def _has_letter(stream: Stream, starts: Tensor, ends: Tensor) -> Tensor:
    alnum = stream.tables.alnum
    found = lookup(alnum, stream.at(starts))
    left = positions(~found)
    offset, width = 1, 4
    while left.numel():
        position = starts[left][:, None] + torch.arange(offset, offset + width, device=starts.device)
        inside = position < ends[left][:, None]
        codes = stream.at(position.clamp(max=stream.num_characters))
        found[left] = (lookup(alnum, codes) & inside).any(1)
        left = left[~found[left] & (starts[left] + offset + width < ends[left])]
        offset, width = offset + width, 4 * width
    return found


def split_long(stream: Stream, line: Bounds, lines: Lines, starts: Tensor, ends: Tensor, *, max_chars: int, max_code_chars: int) -> Tensor:
    """Positions [n] that split the sentences `starts:ends` longer than their limit, white space at their ends left out."""
    long = positions(ends - starts > min(max_chars, max_code_chars))
    if not long.numel():
        return long
    start, end = starts[long], ends[long]
    end = stream.word_end[torch.searchsorted(stream.word_start, end) - 1].minimum(end)
    first = torch.searchsorted(lines.start, start, right=True) - 1
    last = torch.searchsorted(lines.start, end, right=False)
    coded = torch.cat([start.new_zeros(1), lines.code.to(torch.int64).cumsum(0)])
    code = coded[last] > coded[first]
    limit = torch.where(code, max_code_chars, max_chars)
    marks = _Marks(stream, line)
    cuts: list[Tensor] = []
    while (more := end - start > limit).any():
        start, end, limit, code = start[more], end[more], limit[more], code[more]
        start = marks.cut(start, end, limit, code)
        cuts.append(start[start < end])
    return torch.cat(cuts) if cuts else long[:0]


class _Marks:
    """Where long sentences may be cut: sorted positions behind blank lines, line ends, clause marks and white space."""

    def __init__(self, stream: Stream, line: Bounds) -> None:
        self.stream = stream
        self.space = stream.word_start
        clause = stream.word_start[positions(is_one_of(stream.word_last[:-1], ',;:)]"', Code.DASH, Code.CLOSER)) + 1]
        at, code = stream.foreign
        wide = at[is_one_of(code, "", Code.CLAUSE, Code.LIST_COMMA)]
        self.clause = torch.cat([clause, wide + 1]).unique() if wide.numel() else clause
        self.line = line.begin
        self.blank = line.begin[line.apart]

    def cut(self, start: Tensor, end: Tensor, limit: Tensor, code: Tensor) -> Tensor:
        """Where each sentence is cut first: at the best kind of mark, there nearest to where an even piece would end."""
        left = end - start
        pieces = (left + limit - 1) // limit
        even = (left + pieces - 1) // pieces
        low, high, aim = start + even // 2, start + torch.minimum(limit, left - even // 2), start + even
        cut = torch.full_like(start, -1)
        for marks, where in ((self.blank, code), (self.line, code), (self.clause, ~code), (self.space, None)):
            nearest = self._nearest(marks, low, high, aim)
            cut = torch.where(cut >= 0, cut, nearest if where is None else torch.where(where, nearest, -1))
        none = positions(cut < 0)
        cut[none] = self._between_characters(start[none], aim[none])
        # White space at the cut stays with the piece before it.
        word = torch.searchsorted(self.space, cut).clamp(max=self.space.numel() - 1)
        return torch.where(self.stream.at(cut) > 32, cut, torch.maximum(self.space[word], cut + 1))

    def _nearest(self, marks: Tensor, low: Tensor, high: Tensor, aim: Tensor) -> Tensor:
        """The mark in `low < mark <= high` nearest to `aim`, the earlier of two, or -1."""
        if not marks.numel():
            return torch.full_like(aim, -1)
        after = torch.searchsorted(marks, aim)
        right = marks[after.clamp(max=marks.numel() - 1)]
        left = marks[(after - 1).clamp(min=0)]
        right_good = (right > low) & (right <= high) & (right >= aim)
        left_good = (left > low) & (left <= high) & (left < aim)
        nearer = left_good & (~right_good | (aim - left <= right - aim))
        return torch.where(nearer, left, torch.where(right_good, right, -1))

    def _between_characters(self, start: Tensor, cut: Tensor) -> Tensor:
        """`cut`, moved back so that it parts no accent or joined emoji from its base."""
        position = cut
        for _ in range(8):
            tied = is_one_of(self.stream.at(position), "", Code.COMBINING, Code.JOINER) | (self.stream.at(position - 1) == Code.JOINER)
            tied &= position - 1 > start
            if not tied.any():
                break
            position = position - tied.to(torch.int64)
        return position
