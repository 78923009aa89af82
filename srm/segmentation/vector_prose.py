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
# What ends a word of Punkt's, as characters and codes: white space, and what its pattern splits off.
_ENDS = "".join(map(chr, range(33))) + ")\";}]*:@'({[?!", Code.OPEN_QUOTE, Code.CLOSER
_TERMINATORS = ".?!"
_DIGITS = "0123456789"
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
    word, stop, following, closed = _candidates(stream)
    if not word.numel():
        return word
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
    return word[positions(begins)] + 1


def _candidates(stream: Stream) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Words [K] closed by a terminator and a gap, where it is, where the next word is, and whether closers lie between the two."""
    ends, last = stream.word_end, stream.word_last[:-1]
    straight = positions(is_one_of(last, _TERMINATORS, Code.ELLIPSIS))
    inside = positions(is_one_of(last, *_AROUND))
    # Before most closers stands a word, and no terminator, other closer, digit of a footnote or space of an emoji.
    inside = inside[is_one_of(stream.at(ends[inside], -2), _TERMINATORS + " " + _DIGITS + _AROUND[0], Code.ELLIPSIS, *_AROUND[1:])]
    stop = _behind_closers(stream, ends[inside] - 1)
    good = positions(is_one_of(stream.at(stop), _TERMINATORS, Code.ELLIPSIS))
    inside, stop = inside[good], stop[good]
    word, order = torch.cat([straight, inside]).sort()
    stop = torch.cat([ends[straight] - 1, stop])[order]
    following = stream.word_start[word + 1]
    # Emoji and footnote marks behind the gap still belong to what they follow.
    marked = positions(is_one_of(stream.at(following), "[", Code.EMOJI))
    begin, behind = following[marked], word[marked]
    joined = (_behind_closers(stream, stream.word_end[behind + 1] - 1) < begin) & (begin - ends[behind] == 1)
    keep = following < stream.text_end[stream.text_of(stop)]
    keep[marked[joined]] = False
    keep = positions(keep)
    return word[keep], stop[keep], following[keep], order[keep] >= straight.numel()


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
        if bracket.numel():
            note = _note_length(stream, at[bracket])
            step[bracket] = torch.maximum(note, step[bracket])
            emoji[bracket] = note > 0
        # One space before a footnote or an emoji is part of what closes.
        spaced = positions(emoji)
        before = at[spaced] - step[spaced]
        step[spaced] += ((stream.at(before) == 32) & (stream.at(before, -1) > 32)).to(torch.int64)
        position[left] = at - step
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
    back = stream.window(stop, -_LOOK)
    size = num_leading(~is_one_of(back, *_ENDS))
    first = back.gather(1, (size - 1).clamp(min=0)[:, None]).squeeze(1)
    # Some marks cannot open a word of Punkt's; two hyphens are a word by themselves.
    size = size - ((size > 0) & is_one_of(first, "#&,`-")).to(torch.int64)
    known = words.before.find(hash_words(back, size))
    # Most words are on no list, are no letter or number and hold no hyphen or full stop: those end a sentence.
    doubt = (known > 0) | (size == 1) | (back[:, 1] == ord(".")) | is_one_of(back[:, 0], _DIGITS + ".,-") | any_of(back == ord("-"))
    ends = torch.ones_like(doubt)
    doubt = positions(doubt)
    ends[doubt] = _doubtful_ends(stream, words, back[doubt], size[doubt], known[doubt], following[doubt])
    return ends


def _doubtful_ends(stream: Stream, words: Words, back: Tensor, size: Tensor, known: Tensor, following: Tensor) -> Tensor:
    """As `_stop_ends`, where the word before the full stop, the first `size` characters of `back` [J, _LOOK], might be an abbreviation,
    an initial or a number; `known` is what `words` says of it."""
    letter = lookup(stream.tables.letter, back)
    tail = size.minimum(num_leading(back != ord("-")))
    abbreviated = (known | words.before.find(hash_words(back, tail))) & Before.ABBREVIATION > 0
    # Letters with full stops between them.
    even = torch.arange(_LOOK, device=size.device) % 2 == 0
    dotted = num_leading(torch.where(even, letter, back == ord(".")))
    for part in (size, tail):
        abbreviated |= (part >= 3) & (part % 2 == 1) & (part < _LOOK) & (dotted >= part)
    # An apostrophe or a quote may open a word of Punkt's: "'t." is no initial and no abbreviation.
    opened = back.gather(1, size.clamp(max=_LOOK - 1)[:, None]).squeeze(1)
    bare = ~is_one_of(opened, "'?!", Code.OPEN_QUOTE, Code.CLOSER)
    abbreviated &= bare
    initial = bare & (size == 1) & (letter[:, 0] | (back[:, 0] == ord("_")))
    number = bare & (num_leading(is_one_of(back, _DIGITS + ".,-")) >= size) & any_of(is_one_of(back, _DIGITS) & prefix(size, _LOOK))

    head = stream.window(following, _LOOK)
    word = words.after.find(_first_word(stream, head))
    is_opener = word & After.OPENER > 0
    upper, lower = lookup(stream.tables.upper, head[:, 0]), lookup(stream.tables.lower, head[:, 0])
    ends = ~abbreviated | initial & upper & is_opener
    ends |= abbreviated & ~initial & upper & (word > 0)
    ends &= ~((initial | number) & (lower | is_one_of(head[:, 0], ";:,.!?")))
    ends &= ~(initial & upper & ~is_opener)
    ends &= ~(bare & ((known & Before.BEFORE_NUMBER > 0) & _is_number(head) | (known & Before.TITLE > 0) & is_opener))
    return ends | any_of(is_one_of(back, "?!") & leading(back > 32))


def _first_word(stream: Stream, head: Tensor) -> Tensor:
    """Hash of the letters that each row opens with, 0 where the word goes on behind them."""
    size = num_leading(lookup(stream.tables.letter, head))
    after = head.gather(1, size.clamp(max=_LOOK - 1)[:, None]).squeeze(1)
    ended = is_one_of(after, _ENDS[0] + ",.", *_ENDS[1:])
    return torch.where(ended & (size > 0), hash_words(head, size), 0)


def _is_number(head: Tensor) -> Tensor:
    """Whether Punkt's word at the front of each row is a number."""
    signed = (head[:, 0] == ord("-")).to(torch.int64)
    digit = (head >= 48) & (head <= 57)
    part = digit | is_one_of(head, ".,-")
    size = num_leading(part)
    after = head.gather(1, size.clamp(max=head.shape[1] - 1)[:, None]).squeeze(1)
    first = digit.gather(1, signed[:, None]).squeeze(1)
    return first & is_one_of(after, *_ENDS)


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
    known = words.before.find(hash_words(back, size - lead))
    return goes_on | ~closed & (last == ord(".")) & (known & Before.BEFORE_LOWER > 0)


def mend_numbering(stream: Stream, starts: Tensor) -> Tensor:
    """As `numbering.mend_numbering`, on indices of words: those behind the numbers of a list that counts 1, 2, ... move to the number."""
    before = starts - 1
    begin, end = stream.word_start[before], stream.word_end[before]
    at = positions((end - begin <= 4) & is_one_of(stream.at(end, -1), ".)"))
    head = stream.window(begin[at], 4)
    opening = (head[:, 0] == ord("(")).to(torch.int64)
    size = end[at] - begin[at] - opening - 1
    first, second = (head.gather(1, opening[:, None] + step).squeeze(1).to(torch.int64) - 48 for step in range(2))
    good = positions((first >= 0) & (first <= 9) & ((size == 1) | (size == 2) & (second >= 0) & (second <= 9)))
    at, size, first, second = at[good], size[good], first[good], second[good]
    if at.numel() < 2:
        return starts
    number = torch.where(size == 1, first, 10 * first + second)
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
