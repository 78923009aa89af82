# ruff: noqa: RUF001  # Punctuation of other scripts is the subject of this file.
"""Ends of sentences inside prose: the decisions of Punkt (Kiss and Strunk 2006) with knowledge of our own, and what Punkt does not see.

The words Punkt knows are in `abbreviations`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from srm.segmentation.abbreviations import ABBREVIATIONS, BEFORE_LOWER, BEFORE_NUMBER, OPENERS, TITLES
from srm.segmentation.scripts import CLOSERS

__all__ = ["NEXT", "goes_on", "load_punkt"]

# Only a terminator with white space behind it (closing quotes, brackets, emphasis and footnote marks in between) is worth a decision: that
# leaves out URLs, decimals, file names and most code. What follows is no footnote mark.
NEXT = r"(?!\[\^?\d{1,3}\](?:\s|\Z))\S"
_CANDIDATE = re.compile(rf"[.?!]{CLOSERS}\s+(?={NEXT})")
# Longer words are not looked at whole: neither abbreviations nor numbers are that long.
_LONGEST = 40
_DOTTED = re.compile(r"[^\W\d_](?:\.[^\W\d_])+")
_NUMERIC = re.compile(r"-?[.,]?\d[\d,.-]*")
_PARTS = r")\";}\]*:@'’({\[?!“‘«»”`#&"
# The end of a word that Punkt takes for a word by itself. What stands before it matters: "it's" has no initial "s".
_TAIL = re.compile(rf"(?P<opening>[{_PARTS}]?)(?P<tail>[^{_PARTS}]*)\Z")
_NO_WORD = frozenset("'’”»?!")
_NUMBER = re.compile(r"-?[.,]?\d")
_LETTERS = re.compile(r"[^\W\d_]+(?=[\s)\";}\]*:@'’({\[?!,.]|\Z)")


def load_punkt(abbreviations: Iterable[str] = ()) -> Callable[[str], list[int]]:
    """Punkt with the built-in words and `abbreviations`, as a function from a text to the starts of its sentences, the first left out."""
    known = TITLES | ABBREVIATIONS | {word.lower().removesuffix(".") for word in abbreviations}
    return _Punkt(known).starts


class _Punkt:
    """known: abbreviations, in small letters and without their last full stop."""

    def __init__(self, known: frozenset[str]) -> None:
        self._known = known
        self._special = known | BEFORE_NUMBER

    def starts(self, text: str) -> list[int]:
        found: list[int] = []
        special = self._special
        for match in _CANDIDATE.finditer(text):
            stop, start = match.span()
            if found and found[-1] == stop:
                # A terminator behind white space belongs to the word before that: "fini !", ". . .".
                found.pop()
            is_upper = text[start].isupper()
            if text[stop] == ".":
                parts = text[stop - _LONGEST if stop > _LONGEST else 0 : stop].rsplit(None, 1)
                word = parts[-1].lower() if parts else ""
                # Most words and the numbers of lists end a sentence without further thought.
                is_plain = word not in special and ((word.isalpha() and len(word) > 1) or (is_upper and word.isdigit()))
                if not is_plain and not self._ends(word, text, start):
                    continue
            if is_upper or not goes_on(text, start):
                found.append(start)
        return found

    def _ends(self, word: str, text: str, start: int) -> bool:
        """Whether a full stop between `word`, in small letters, and the word at `start` ends a sentence."""
        if word.endswith((".", "…")):
            # An ellipsis ends no sentence here (see `scripts`), but the question mark before it does.
            return word.rstrip(".…").endswith(("?", "!"))
        part = _TAIL.search(word)
        if part is None or part["opening"] in _NO_WORD:
            return True
        return self._ends_behind(part["tail"].lstrip(",-"), text, start)

    def _ends_behind(self, word: str, text: str, start: int) -> bool:
        """As `_ends`, behind a word that may be an abbreviation, an initial or a number."""
        if word in BEFORE_NUMBER and _NUMBER.match(text, start):
            return False
        first, letters = text[start], _LETTERS.match(text, start)
        follower = letters[0].lower() if letters and first.isupper() else ""
        if word in self._known or word.rsplit("-", 1)[-1] in self._known or _DOTTED.fullmatch(word):
            # "a" and "i" would take the second initial of "J. A. Smith" for a word: they open a sentence only behind an abbreviation.
            return word not in TITLES and (follower in OPENERS or follower in ("a", "i"))
        is_initial = len(word) == 1 and (word.isalpha() or word == "_")
        if is_initial or _NUMERIC.fullmatch(word):
            goes_on_small = first.islower() or first in ";:,.!?"
            return not goes_on_small and not (is_initial and first.isupper() and follower not in OPENERS)
        return True


def goes_on(text: str, start: int) -> bool:
    """Whether the sentence goes on at `start`, where no capital stands.

    `5! = 120` before a sign, `3! holds` behind a factorial, `"Stop!" he said` and `(really?) and` before a small letter, `a 5 min. walk`
    and `etc. (and so on)` before either.
    """
    gap = text[max(0, start - _LONGEST) : start]
    before = gap.rstrip()
    mark = before[-1:]
    if text[start] in "=<>≤≥≈×÷+" or (mark == "!" and before[-2:-1].isdigit()):
        return True
    if mark == ".":
        return before.rsplit(maxsplit=1)[-1].lstrip("\"'“‘«([*_")[:-1].lower() in BEFORE_LOWER
    return mark not in "?!" and text[start].islower() and "\n" not in gap[len(before) :]
