"""The layout rules of `structure` on all lines of a `Stream` at once.

Shape letters: `M` lines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from srm.segmentation.characters import Code, any_of, is_one_of, lookup, num_leading, positions, prefix
from srm.segmentation.stream import Lexicon, Stream, hash_words

__all__ = ["Lines", "read_lines", "split_lines"]

# Words that open a line of code, as lists of a `Lexicon`, and their bits.
_KEYWORDS = ("def class if elif else for while try except finally with", "import", "from", "include define ifdef ifndef endif pragma")
_BLOCK, _IMPORT, _FROM, _DIRECTIVE = 1, 2, 4, 8
_LOOK = 8


class Kind(IntEnum):
    BLANK = 0
    FENCE = 1
    MATHS = 2
    TABLE = 3
    RULE = 4
    HEADING = 5
    ITEM = 6
    MARKER = 7
    QUOTE = 8
    CODE = 9
    PLAIN = 10


class Bounds(NamedTuple):
    """The lines [M] that are not blank: where each starts, its first and last word, where its content begins and ends.

    opening, closing: uint8 [M], codes of the first and the last character of its content.
    apart: bool [M], a blank line stands above it, as does the start of a text.
    """

    start: Tensor
    first: Tensor
    last: Tensor
    begin: Tensor
    stop: Tensor
    opening: Tensor
    closing: Tensor
    apart: Tensor


class Rows(NamedTuple):
    """What the rules read of some of the lines, [n]: eight characters [n, _LOOK] of the content, the last one, where it begins and ends."""

    head: Tensor
    closing: Tensor
    begin: Tensor
    stop: Tensor


@dataclass(frozen=True, kw_only=True)
class Lines:
    """What the layout says.

    start: int64 [M], where each line starts. begin: int64 [M], where its content does.
    opens: bool [M], the line begins a sentence.
    sealed: bool [M], no other rule begins a sentence at the line's first word. sealed_rest: at the words behind it.
    marker_end: int64 [M], the word behind a list marker, where none begins either; -1 elsewhere.
    code: bool [M], the line belongs to a block of code.
    """

    start: Tensor
    begin: Tensor
    opens: Tensor
    sealed: Tensor
    sealed_rest: Tensor
    marker_end: Tensor
    code: Tensor

    def is_sealed(self, position: Tensor) -> Tensor:
        """Whether no rule for prose may begin a sentence at `position`."""
        line = torch.searchsorted(self.start, position, right=True) - 1
        return torch.where(position == self.begin[line], self.sealed[line], self.sealed_rest[line]) | (position == self.marker_end[line])


def split_lines(stream: Stream) -> Bounds:
    """The lines of `stream`, which holds a word. Its last text ends in line breaks, so every character lies in a line."""
    breaks = stream.where("\n")
    start = torch.cat([breaks.new_zeros(1), breaks + 1])
    edges = torch.searchsorted(stream.word_start, start)
    line = positions(edges[1:] > edges[:-1])
    first, last = edges[line], edges[line + 1] - 1
    apart = torch.ones_like(line, dtype=torch.bool)
    apart[1:] = line.diff() > 1
    begin, stop = stream.word_start.index_select(0, first), stream.word_end.index_select(0, last)
    return Bounds(start[line], first, last, begin, stop, stream.at(begin), stream.word_last.index_select(0, last), apart)


def _rows(stream: Stream, line: Bounds, at: Tensor) -> Rows:
    closing, begin, stop = (field.index_select(0, at) for field in (line.closing, line.begin, line.stop))
    return Rows(stream.window(begin, _LOOK), closing, begin, stop)


def read_lines(stream: Stream, line: Bounds) -> Lines:
    """See `structure.read_structure`, whose rules these are."""
    kind = _kinds(stream, line)
    counts = torch.searchsorted(line.start, torch.cat([stream.text_start, stream.text_start.new_full((1,), stream.num_characters)])).diff()
    text = torch.repeat_interleave(counts, output_size=kind.numel())
    in_fence, opens_fence, closes_fence = _fences(line, kind, text)
    in_maths, opens_maths, closes_maths, unclosed = _maths(stream, line, kind, in_fence | opens_fence)
    inside = in_fence | in_maths
    # Lines inside a block say nothing; the one that closes it is what the next line has above it.
    kind.masked_fill_(inside, Kind.PLAIN)
    kind = _spread_code(stream, line, kind, inside)
    kind.masked_fill_(closes_fence, Kind.FENCE)
    kind.masked_fill_(closes_maths, Kind.MATHS)
    items = positions(kind == Kind.ITEM)
    alone = (line.first[items] == line.last[items]) & (line.opening[items] != Code.CIRCLED)
    kind[items[alone]] = int(Kind.MARKER)
    items = items[~alone]
    above = torch.cat([kind[:1], kind[:-1]]).masked_fill_(line.apart, Kind.BLANK)
    opens = ~(inside | unclosed | (above == Kind.MARKER)) & _begins(stream, line, kind, above)
    run_on = (kind == Kind.CODE) & (above == Kind.CODE)
    in_run = run_on | torch.cat([run_on[1:], run_on.new_zeros(1)])
    sealed = inside | run_on
    marker_end = torch.full_like(line.start, -1)
    marker_end[items] = stream.word_start[(line.first[items] + 1).clamp(max=stream.word_start.numel() - 1)]
    return Lines(
        start=line.start,
        begin=line.begin,
        opens=opens,
        sealed=sealed,
        sealed_rest=sealed | opens_fence | opens_maths | in_run | ((kind == Kind.HEADING) | (kind == Kind.TABLE)) & ~inside,
        marker_end=marker_end,
        code=in_fence | opens_fence | in_run,
    )


def _kinds(stream: Stream, line: Bounds) -> Tensor:
    """The kind uint8 [M] of each line by itself, as if no block were open."""
    first = line.opening
    kind = torch.full_like(first, Kind.PLAIN)

    def give(name: Kind, may: Tensor, rule: Callable[[Stream, Rows], Tensor]) -> None:
        at = positions(may)
        kind[at[rule(stream, _rows(stream, line, at))]] = int(name)

    # From the last choice to the first: a later one overrules.
    kind.masked_fill_(is_one_of(line.closing, ";{"), Kind.CODE)
    give(Kind.CODE, is_one_of(first, ")]}"), _closes_brackets)
    give(Kind.CODE, lookup(stream.tables.lower, first) & ((line.closing == ord(":")) | is_one_of(first, "if")), _keywords)
    give(Kind.CODE, first == ord("#"), _directives)
    kind.masked_fill_(first == ord(">"), Kind.QUOTE)
    marker = is_one_of(stream.word_last[line.first], ".)-*+", Code.BULLET, Code.DASH)
    give(Kind.ITEM, marker | is_one_of(first, "0123456789", Code.CIRCLED), _items)
    give(Kind.HEADING, is_one_of(first, "#*_"), _headings)
    give(Kind.RULE, is_one_of(first, "-*_="), _rules)
    give(Kind.TABLE, is_one_of(first, "|-:"), _tables)
    give(Kind.MATHS, is_one_of(first, "$\\"), _maths_marks)
    give(Kind.FENCE, is_one_of(first, "`~"), _fence_marks)
    give(Kind.BLANK, first == ord(">"), lambda _, rows: rows.stop - rows.begin == 1)
    return kind


def _fence_marks(stream: Stream, rows: Rows) -> Tensor:
    ticks = _run(rows.head, "`")
    alone = _count(stream.where("`"), rows.begin, rows.stop) <= ticks
    return (ticks >= 3) & (alone | (ticks == _LOOK)) | (_run(rows.head, "~") >= 3)


def _maths_marks(stream: Stream, rows: Rows) -> Tensor:
    return _starts_with(rows.head, "$$") | _starts_with(rows.head, "\\[") | _starts_with(rows.head, "\\begin{")


def _tables(stream: Stream, rows: Rows) -> Tensor:
    ruled = (_starts_with(rows.head, "--") | _starts_with(rows.head, ":--")) & (_count(stream.where("|"), rows.begin, rows.stop) > 0)
    return (rows.head[:, 0] == ord("|")) | ruled


def _count(sorted_positions: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """How many of the positions lie in each `start:end`."""
    return torch.searchsorted(sorted_positions, end) - torch.searchsorted(sorted_positions, start)


def _run(head: Tensor, character: str) -> Tensor:
    """How many of `character` each row opens with, up to the width of the window."""
    return num_leading(head == ord(character))


def _starts_with(head: Tensor, word: str) -> Tensor:
    """Whether rows of eight characters open with `word`."""
    start = head.view(torch.int64).squeeze(1) & (1 << 8 * len(word)) - 1
    return start == int.from_bytes(word.encode(), "little")


def _rules(stream: Stream, rows: Rows) -> Tensor:
    length = rows.stop - rows.begin
    marks = "-*_=\t "
    tail = stream.window(rows.stop, -3)
    beyond = torch.arange(_LOOK, device=length.device) >= length[:, None]
    return (length >= 3) & (is_one_of(rows.head, marks) | beyond).all(1) & is_one_of(tail, marks).all(1)


def _headings(stream: Stream, rows: Rows) -> Tensor:
    hashes = _run(rows.head, "#")
    after = rows.head.gather(1, hashes.clamp(max=_LOOK - 1)[:, None]).squeeze(1)
    hashed = (hashes > 0) & (hashes <= 6) & ((after == 32) | (after == 9)) & (rows.stop - rows.begin > hashes)
    # A bold line, with a colon behind it or not.
    stop = rows.stop - (rows.closing == ord(":")).to(torch.int64)
    mark = rows.head[:, 0]
    bold = (mark != ord("#")) & (rows.head[:, 1] == mark) & (stream.at(stop, -1) == mark) & (stream.at(stop, -2) == mark)
    bold &= stop - rows.begin > 4
    # The first closing mark must be the one at the end.
    starred = positions(bold & (mark == ord("*")))
    bold[starred] = _count(stream.pairs("*", "*"), rows.begin[starred] + 2, stop[starred] - 2) == 0
    return hashed | bold


def _items(stream: Stream, rows: Rows) -> Tensor:
    head = rows.head
    length = num_leading(head > 32)
    opening = (head[:, 0] == ord("(")).to(torch.int64)
    last = head.gather(1, (length - 1)[:, None]).squeeze(1)
    size = length - 1 - opening
    body = prefix(length - 1, _LOOK) & ~prefix(opening, _LOOK)

    def all_of(member: Tensor) -> Tensor:
        return ~any_of(body & ~member)

    digit = (head >= 48) & (head <= 57)
    number = all_of(digit) & (size >= 1) & (size <= 3)
    letter = (size == 1) & all_of((head | 32 >= 97) & (head | 32 <= 122))
    roman = (size >= 2) & (size <= 5) & all_of(is_one_of(head, "ivxIVX"))
    bullet = (length == 1) & is_one_of(head[:, 0], "-*+", Code.BULLET, Code.DASH)
    digits = num_leading(digit)
    after = head.gather(1, digits.clamp(max=_LOOK - 1)[:, None]).squeeze(1)
    wide = (digits >= 1) & (digits <= 3) & is_one_of(after, "", Code.LIST_COMMA, Code.WIDE_STOP)
    return bullet | is_one_of(last, ".)") & (number | letter | roman) | (head[:, 0] == Code.CIRCLED) | wide


def _closes_brackets(stream: Stream, rows: Rows) -> Tensor:
    """Lines of closing brackets alone, whatever stands above them, as of the other two kinds of code below."""
    closing = num_leading(is_one_of(rows.head, ")]}"))
    after = rows.head.gather(1, closing.clamp(max=_LOOK - 1)[:, None]).squeeze(1)
    length = rows.stop - rows.begin
    return (length == closing) | (length == closing + 1) & is_one_of(after, ";,")


def _keywords(stream: Stream, rows: Rows) -> Tensor:
    """Lines that open a block, and imports."""
    size = num_leading(lookup(stream.tables.lower, rows.head))
    word = _code_words(size.device).find(hash_words(rows.head, size))
    behind = rows.head.gather(1, size.clamp(max=_LOOK - 1)[:, None]).squeeze(1)
    block = (word & _BLOCK > 0) & ~lookup(stream.tables.alnum, behind) & (rows.closing == ord(":"))
    # "import x", "import x as y", "from x import y": by the number of words and the third one.
    words = stream.word_start
    first = torch.searchsorted(words, rows.begin)
    count = torch.searchsorted(words, rows.stop) - first
    look = stream.window(words[(first + 2).clamp(max=words.numel() - 1)], _LOOK)
    dotted = (rows.closing == ord("_")) | lookup(stream.tables.alnum, rows.closing)
    imports = (word & _IMPORT > 0) & dotted & ((count == 2) | (count == 4) & _starts_with(look, "as "))
    return block | (behind == 32) & (imports | (word & _FROM > 0) & (count >= 4) & _starts_with(look, "import "))


def _directives(stream: Stream, rows: Rows) -> Tensor:
    head = stream.window(rows.begin + 1, _LOOK)
    word = _code_words(head.device).find(hash_words(head, num_leading(lookup(stream.tables.lower, head))))
    return (word & _DIRECTIVE > 0) | (head[:, 0] == ord("!"))


@cache
def _code_words(device: torch.device) -> Lexicon:
    return Lexicon([words.split() for words in _KEYWORDS], device, backwards=False)


def _spread_code(stream: Stream, line: Bounds, kind: Tensor, inside: Tensor) -> Tensor:
    """`kind` with the lines that are code because the line above is."""
    equals = stream.where("=")
    alone = equals[(stream.at(equals, -1) == 32) & (stream.at(equals, 1) == 32)]
    first = line.opening
    looks = lookup(stream.tables.lower, first) | is_one_of(first, "#/@<$_)]}", Code.LOWER) | (line.begin - line.start > 1)
    looks[torch.searchsorted(line.start, alone, right=True) - 1] = True
    may = (kind == Kind.PLAIN) | (kind == Kind.ITEM) | (kind == Kind.HEADING)
    goes_on = may & looks & ~(inside | line.apart)
    # The last line that does not go on, and whether it is code.
    number = 2 * torch.arange(kind.numel(), device=kind.device) + (kind == Kind.CODE)
    code = torch.where(goes_on, 0, number).cummax(0).values & 1
    return torch.where(code.bool(), int(Kind.CODE), kind)


def _begins(stream: Stream, line: Bounds, kind: Tensor, above: Tensor) -> Tensor:
    """`structure._begins_sentence` of every line."""
    begins = (kind <= Kind.HEADING) | (above <= Kind.HEADING) | (kind == Kind.ITEM) | (kind == Kind.MARKER)
    begins |= (kind == Kind.QUOTE) != (above == Kind.QUOTE)
    at = positions(~(begins | (kind == Kind.CODE) & (above == Kind.CODE)))
    # A blank line stands above the first line.
    last = line.closing[at - 1]
    rows = _rows(stream, line, at)
    indent = rows.begin - line.start[at]
    skipped = num_leading(is_one_of(rows.head, ">*_(\"' ", Code.OPEN_QUOTE))
    first = rows.head.gather(1, skipped.clamp(max=_LOOK - 1)[:, None]).squeeze(1)
    small = lookup(stream.tables.lower, first) & (skipped < _LOOK)
    formula = (_count(stream.where("="), rows.begin, rows.stop) > 0) | _starts_with(rows.head, "http")
    held = (indent >= 4) | is_one_of(rows.head[:, 0], ")]},.;") | is_one_of(last, ",({[\\")
    begins[at] = (last == ord(":")) | ~held & (~small | ~is_one_of(last, ";{}") & formula)
    return begins


def _fences(line: Bounds, kind: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lines inside a fenced block behind its opening line, lines that open one, lines that close one (inside as well): bool [M] each.

    text: int64 [M], the text of each line. A bare fence changes sides; one with the name of a language opens a block where none is open and
    is part of it where one is.
    """
    inside, opens, closes = torch.zeros_like(kind, dtype=torch.bool).expand(3, -1).clone()
    at = positions(kind == Kind.FENCE)
    if not at.numel():
        return inside, opens, closes
    last = line.closing[at]
    bare = (last == ord("`")) | (last == ord("~"))
    order = torch.arange(at.numel(), device=at.device)
    owner = text[at]
    first = torch.searchsorted(owner, owner)
    turns = bare.to(torch.int64).cumsum(0)
    named = torch.where(bare, -1, order).cummax(0).values
    is_named = named >= first
    base = torch.where(is_named, turns[named.clamp(min=0)], turns[first] - bare[first].to(torch.int64))
    open_after = ((turns - base) % 2).bool() ^ is_named
    before = torch.cat([open_after.new_zeros(1), open_after[:-1]]) & (order > first)
    opens[at], closes[at] = open_after & ~before, before & ~open_after
    # The last of these lines before or at each line of the same text.
    passed = torch.zeros_like(text).index_fill_(0, at, 1).cumsum(0) - 1
    index = passed.clamp(min=0)
    inside = (passed >= 0) & (owner[index] == text) & open_after[index]
    return (inside | closes) & ~opens, opens, closes


def _maths(stream: Stream, line: Bounds, kind: Tensor, fenced: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `_fences`, for display maths over several lines; last, the lines up to a blank one behind a mark that is never closed.

    TeX allows no blank line inside, so what one ends is not sealed.
    """
    number = kind.numel()
    inside, opens, closes, unclosed = torch.zeros_like(fenced).expand(4, -1).clone()
    opening = positions((kind == Kind.MATHS) & ~fenced)
    if not opening.numel():
        return inside, opens, closes, unclosed
    rows = _rows(stream, line, opening)
    # Lines that a block cannot reach: blank ones, as the index of the next line, and the end.
    wall = torch.cat([positions(line.apart | (kind == Kind.BLANK)), opening.new_full((1,), number)])
    for start, end in (("$$", "$$"), ("\\[", "\\]"), ("\\begin{", "\\end{")):
        ends = stream.pairs(end[0], end[1])
        begins = _starts_with(rows.head, start) & ~inside[opening]
        at = opening[begins & (_count(ends, rows.begin + 2, rows.stop) == 0)]
        closer = (torch.searchsorted(line.start, ends, right=True) - 1).unique_consecutive()
        closer = torch.cat([closer[~fenced[closer]], closer.new_full((1,), number)])
        nearest = closer[torch.searchsorted(closer, at, right=True)]
        before_wall = wall[torch.searchsorted(wall, at, right=True)] - 1
        closed = nearest <= before_wall
        stop = nearest.minimum(before_wall)
        if start == "$$":
            # A closing mark that begins its line was counted as an opening one: of a chain of them, every second one closes.
            order = torch.arange(at.numel(), device=at.device)
            chained = torch.isin(at, stop[closed])
            keep = (order - torch.where(chained, -1, order).cummax(0).values) % 2 == 0
            at, stop, closed = at[keep], stop[keep], closed[keep]
        inside |= _between(at[closed], stop[closed], number)
        unclosed |= _between(at[~closed], stop[~closed], number)
        opens[at[closed]], closes[stop[closed]] = True, True
    return inside, opens & ~inside, closes & inside, unclosed


def _between(start: Tensor, stop: Tensor, number: int) -> Tensor:
    """Which of `number` lines lie behind one of `start`, up to its `stop`."""
    steps = start.new_zeros(number + 2)
    steps.index_add_(0, start + 1, torch.ones_like(start))
    steps.index_add_(0, stop + 1, -torch.ones_like(stop))
    return steps.cumsum(0)[:number] > 0
