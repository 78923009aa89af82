"""The rules for prose (Punkt's, and those of `punkt`, `numbering` and `scripts`) on all words of a `Stream` at once.

Shape letters: `W` words, `K` words with a terminator behind them, `J` of those whose terminator is a full stop.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntFlag

import torch
from torch import Tensor

from srm.segmentation.abbreviations import ABBREVIATIONS, BEFORE_LOWER, BEFORE_NUMBER, OPENERS, TITLES
from srm.segmentation.characters import CLOSERS, Code, any_of, is_one_of, leading, lookup, num_leading, positions, prefix
from srm.segmentation.stream import Lexicon, Stream, hash_words

__all__ = ["Words", "foreign_starts", "mend_numbering", "prose_starts"]

_LOOK = 16
# What Punkt's word pattern splits off, as characters and codes.
_SPLITS = ")\";}]*:@'({[?!", Code.OPEN_QUOTE, Code.CLOSER
_TERMINATORS = ".?!"
_AROUND = *CLOSERS, Code.EMOJI, Code.JOINER


class Before(IntFlag):
    """What Punkt knows of the word that a full stop closes."""

    ABBREVIATION = 1
    TITLE = 2
    BEFORE_NUMBER = 4
    BEFORE_LOWER = 8


class After(IntFlag):
    """What it knows of the word behind that."""

    OPENER = 1
    ARTICLE = 2


class Words:
    """The words Punkt knows: `before` ones read backwards from the full stop, `after` ones forwards."""

    def __init__(self, abbreviations: Iterable[str], device: torch.device) -> None:
        extra = {word.lower().removesuffix(".") for word in abbreviations}
        before = (TITLES | ABBREVIATIONS | extra, TITLES, BEFORE_NUMBER, BEFORE_LOWER)
        self.before = Lexicon(before, device, backwards=True)
        self.after = Lexicon((OPENERS, {"a", "i"}), device, backwards=False)


def prose_starts(stream: Stream, words: Words) -> Tensor:
    """Indices of the words that begin a sentence behind a terminator, in order; the layout is not asked."""
    word, stop, closed = _candidates(stream)
    if not word.numel():
        return word
    following = stream.word_start[word + 1]
    mark, before = stream.at(stop), stream.at(stop, -1)
    dotted = mark == ord(".")
    run = dotted & (before == ord(".")) | (mark == Code.ELLIPSIS)
    begins = ~(dotted | run)
    single = positions(dotted & ~run)
    begins[single] = _stop_ends(stream, words, stop[single], following[single])
    small = positions(~lookup(stream.tables.upper, stream.at(following)))
    begins[small] &= ~_goes_on(stream, words, word[small], stop[small], following[small], closed[small])
    several = positions(run | is_one_of(before, _TERMINATORS, Code.ELLIPSIS))
    begins[several] |= _several_end(stream, stop[several], following[several], run[several])
    return word[begins] + 1


def _candidates(stream: Stream) -> tuple[Tensor, Tensor, Tensor]:
    """Words [K] with a gap behind them that closes a terminator, where that terminator is, and whether closers lie in between."""
    ends, last = stream.word_end, stream.word_last[:-1]
    straight = positions(is_one_of(last, _TERMINATORS, Code.ELLIPSIS))
    inside = positions(is_one_of(last, *_AROUND))
    # Before most closers stands a word, and no terminator, other closer, digit of a footnote or space of an emoji.
    inside = inside[is_one_of(stream.at(ends[inside], -2), _TERMINATORS + " 0123456789" + _AROUND[0], Code.ELLIPSIS, *_AROUND[1:])]
    stop = _behind_closers(stream, ends[inside] - 1)
    good = positions(is_one_of(stream.at(stop), _TERMINATORS, Code.ELLIPSIS))
    inside, stop = inside[good], stop[good]
    found, order = torch.cat([straight, inside]).sort()
    at = torch.cat([ends[straight] - 1, stop])[order]
    closed = order >= straight.numel()
    # Emoji and footnote marks behind the gap still belong to what they follow.
    keep = ~_is_footnote_or_emoji(stream, stream.word_start[found + 1], stream.word_end[found + 1], stream.word_end[found])
    keep &= stream.text_of(at) == stream.text_of(stream.word_start[found + 1])
    return found[keep], at[keep], closed[keep]


def _behind_closers(stream: Stream, position: Tensor) -> Tensor:
    """The last character before the closers that end at `position`."""
    position = position.clone()
    left = torch.arange(position.numel(), device=position.device)
    for _ in range(12):
        at = position[left]
        code = stream.at(at)
        emoji = is_one_of(code, "", Code.EMOJI, Code.JOINER)
        step = (lookup(stream.tables.closer, code) | emoji).to(torch.int64)
        bracket = positions(code == ord("]"))
        note = _note_length(stream, at[bracket])
        step[bracket] = torch.maximum(note, step[bracket])
        # One space before a footnote or an emoji is part of what closes.
        spaced = emoji.index_copy(0, bracket, note > 0)
        spaced &= (stream.at(at - step) == 32) & (stream.at(at - step - 1) > 32)
        position[left] = at - step - spaced.to(torch.int64)
        left = left[step > 0]
        if not left.numel():
            break
    return position


def _note_length(stream: Stream, bracket: Tensor) -> Tensor:
    """Characters of the footnote mark, `[12]` or `[^1]`, that ends with the bracket at each position; 0 where none does."""
    near = stream.window(bracket, -6)
    digits = num_leading((near >= 48) & (near <= 57))
    hat = (near.gather(1, digits[:, None].clamp(max=5)).squeeze(1) == ord("^")).to(torch.int64)
    opening = near.gather(1, (digits + hat).clamp(max=5)[:, None]).squeeze(1)
    return torch.where((digits >= 1) & (digits <= 3) & (opening == ord("[")), digits + hat + 2, 0)


def _is_footnote_or_emoji(stream: Stream, start: Tensor, end: Tensor, gap: Tensor) -> Tensor:
    """Whether a word, one space behind the word before it, is a footnote mark or only emoji."""
    first = stream.at(start)
    maybe = is_one_of(first, "[", Code.EMOJI)
    found = torch.zeros_like(maybe)
    at = positions(maybe)
    if at.numel():
        closed = _behind_closers(stream, end[at] - 1)
        found[at] = (closed < start[at]) & (start[at] - gap[at] == 1)
    return found


def _several_end(stream: Stream, stop: Tensor, following: Tensor, run: Tensor) -> Tensor:
    """Whether the last of several terminators at `stop`, an ellipsis where `run`, ends a sentence by rules for several."""
    back = stream.window(stop + 1, -6)
    marks = leading(is_one_of(back, _TERMINATORS, Code.ELLIPSIS))
    dots = (back == ord(".")) & marks
    ellipsis = ((back == Code.ELLIPSIS) & marks).any(1) | (dots[:, 1:] & dots[:, :-1]).any(1)
    head = stream.window(following, 6)
    quotes = num_leading(lookup(stream.tables.opener, head)).clamp(max=5)
    first = head.gather(1, quotes[:, None]).squeeze(1)
    # "?.." holds a question mark, which ends a sentence by itself.
    before = stream.window(stop, -4)
    asked = (is_one_of(before, "?!") & leading(is_one_of(before, _TERMINATORS))).any(1)
    return run & asked | ellipsis & lookup(stream.tables.upper, first)


def _stop_ends(stream: Stream, words: Words, stop: Tensor, following: Tensor) -> Tensor:
    """Whether the single full stop at `stop` [J] ends a sentence before the word at `following`: Punkt's decision."""
    tables = stream.tables
    back = stream.window(stop, -_LOOK)
    black = back > 32
    size = num_leading(black & ~is_one_of(back, *_SPLITS))
    first = back.gather(1, (size - 1).clamp(min=0)[:, None]).squeeze(1)
    # Some marks cannot open a word of Punkt's; two hyphens are a word by themselves.
    size = size - ((size > 0) & is_one_of(first, "#&,`-")).to(torch.int64)
    tail = size.minimum(num_leading(back != ord("-")))
    whole, last_part = (words.before.find(hash_words(back, prefix(part, _LOOK))) for part in (size, tail))
    letter = lookup(tables.letter, back)
    digit = (back >= 48) & (back <= 57)
    abbreviated = (whole | last_part) & Before.ABBREVIATION > 0
    # Letters with full stops between them.
    even = torch.arange(_LOOK, device=stop.device) % 2 == 0
    dotted = num_leading(torch.where(even, letter, back == ord(".")))
    for part in (size, tail):
        abbreviated |= (part >= 3) & (part % 2 == 1) & (part < _LOOK) & (dotted >= part)
    # An apostrophe or a quote may open a word of Punkt's: "'t." is no initial and no abbreviation.
    opened = back.gather(1, size.clamp(max=_LOOK - 1)[:, None]).squeeze(1)
    bare = ~is_one_of(opened, "'?!", Code.OPEN_QUOTE, Code.CLOSER)
    abbreviated &= bare
    initial = bare & (size == 1) & (letter[:, 0] | (back[:, 0] == ord("_")))
    number = bare & (num_leading(digit | is_one_of(back, ".,-")) >= size) & any_of(digit & prefix(size, _LOOK))

    head = stream.window(following, _LOOK)
    word = words.after.find(_first_word(stream, head))
    is_opener = word & After.OPENER > 0
    upper, lower = lookup(tables.upper, head[:, 0]), lookup(tables.lower, head[:, 0])
    ends = ~abbreviated | initial & upper & is_opener
    ends |= abbreviated & ~initial & upper & (word > 0)
    ends &= ~((initial | number) & (lower | is_one_of(head[:, 0], ";:,.!?")))
    ends &= ~(initial & upper & ~is_opener)
    together = bare & (whole & Before.TITLE > 0) & is_opener
    counted = positions(bare & (whole & Before.BEFORE_NUMBER > 0))
    together[counted] |= _is_number(head[counted])
    return ends & ~together | any_of(is_one_of(back, "?!") & leading(black))


def _first_word(stream: Stream, head: Tensor) -> Tensor:
    """Hash of the letters that each row opens with, 0 where the word goes on behind them."""
    letters = leading(lookup(stream.tables.letter, head))
    size = letters.sum(1)
    after = head.gather(1, size.clamp(max=_LOOK - 1)[:, None]).squeeze(1)
    ended = (after <= 32) | is_one_of(after, _SPLITS[0] + ",.", *_SPLITS[1:])
    return torch.where(ended & (size > 0), hash_words(head, letters), 0)


def _is_number(head: Tensor) -> Tensor:
    """Whether Punkt's word at the front of each row is a number."""
    signed = (head[:, 0] == ord("-")).to(torch.int64)
    digit = (head >= 48) & (head <= 57)
    part = digit | is_one_of(head, ".,-")
    size = num_leading(part)
    after = head.gather(1, size.clamp(max=head.shape[1] - 1)[:, None]).squeeze(1)
    first = digit.gather(1, signed[:, None]).squeeze(1)
    return first & ((after <= 32) | is_one_of(after, *_SPLITS))


def _goes_on(stream: Stream, words: Words, word: Tensor, stop: Tensor, following: Tensor, closed: Tensor) -> Tensor:
    """`punkt._goes_on`, for candidates before no capital."""
    first = stream.at(following)
    end = stream.word_end[word]
    last, second = stream.at(end, -1), stream.at(end, -2)
    goes_on = is_one_of(first, "=<>+", Code.SIGN) | (last == ord("!")) & (second >= 48) & (second <= 57)
    quoted = closed & ~is_one_of(last, _TERMINATORS) & lookup(stream.tables.lower, first)
    breaks = torch.searchsorted(stream.where("\n"), torch.stack([end, following]))
    goes_on |= quoted & (breaks[0] == breaks[1])
    back = stream.window(stop, -_LOOK)
    size = (stop - stream.word_start[word]).clamp(0, _LOOK)
    inside = prefix(size, _LOOK)
    marks = is_one_of(back, "\"'([*_", Code.OPEN_QUOTE) & inside
    # Opening marks at the front of the word are no part of it.
    lead = num_leading((marks | ~inside).flip(1)) - (_LOOK - size)
    known = words.before.find(hash_words(back, prefix(size - lead, _LOOK)))
    return goes_on | ~closed & (last == ord(".")) & (known & Before.BEFORE_LOWER > 0)


def mend_numbering(stream: Stream, starts: Tensor) -> Tensor:
    """As `numbering.mend_numbering`, on indices of words: those behind the numbers of a list that counts 1, 2, ... move to the number."""
    before = starts - 1
    head = stream.window(stream.word_start[before], 5)
    length = stream.word_end[before] - stream.word_start[before]
    opening = (head[:, 0] == ord("(")).to(torch.int64)
    digits = (head >= 48) & (head <= 57)
    first = head.gather(1, opening[:, None]).squeeze(1).to(torch.int64) - 48
    second = head.gather(1, opening[:, None] + 1).squeeze(1).to(torch.int64) - 48
    size = length - opening - 1
    good = (first >= 0) & (first <= 9) & ((size == 1) | (size == 2) & (second >= 0) & (second <= 9))
    good &= is_one_of(stream.at(stream.word_end[before] - 1), ".)") & digits.any(1)
    at = positions(good)
    if at.numel() < 2:
        return starts
    number = torch.where(size[at] == 1, first[at], 10 * first[at] + second[at])
    text = stream.text_of(stream.word_start[starts[at]])
    fresh = torch.ones_like(number, dtype=torch.bool)
    fresh[1:] = (number[1:] != number[:-1] + 1) | (text[1:] != text[:-1])
    run = fresh.cumsum(0) - 1
    counts = torch.bincount(run)
    opened = number[fresh]
    listed = ((counts > 1) & (opened == 1))[run]
    moved = starts.clone()
    moved[at[listed]] -= 1
    return moved


def foreign_starts(stream: Stream) -> Tensor:
    """Positions where a sentence begins behind a terminator of another script, in order; may hold some twice."""
    position, code = stream.foreign
    at = position[is_one_of(code, "", Code.TERMINATOR, Code.WIDE_STOP)]
    before = stream.at(at - 1)
    at = at[(stream.at(at) == Code.TERMINATOR) | (before < 48) | (before > 57)]
    found = []
    if at.numel():
        start = _skip(stream, at + 1)
        quoted = (stream.at(start) == Code.PARTICLE_TO) & (stream.at(start - 1) == Code.CORNER)
        found.append(start[~quoted])
    asian = position[is_one_of(code, "", Code.CJK, Code.PARTICLE_TO)]
    asian = asian[is_one_of(stream.at(asian + 1), _TERMINATORS)]
    if asian.numel():
        start = _skip(stream, asian + 1)
        found.append(start[is_one_of(stream.at(start), "", Code.CJK, Code.PARTICLE_TO) & (stream.at(start - 1) > 32)])
    return torch.cat(found) if found else at


def _skip(stream: Stream, position: Tensor) -> Tensor:
    """Behind the terminators, closers and white space at `position`."""
    closer = stream.tables.closer
    last = stream.num_characters
    for _ in range(24):
        code = stream.at(position)
        more = lookup(closer, code) | is_one_of(code, ".?! \t\n\r", Code.TERMINATOR, Code.WIDE_STOP, Code.ELLIPSIS, Code.EMOJI)
        more &= position < last
        if not more.any():
            break
        position = position + more.to(torch.int64)
    return position
