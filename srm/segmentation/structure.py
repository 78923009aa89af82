# ruff: noqa: RUF001  # Punctuation of other scripts is the subject of this file.
"""Layout: which lines begin a sentence by themselves, and where a base splitter must not cut.

One regular expression classifies every line; the rest is a walk over the lines.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import cast

__all__ = ["Structure", "read_structure"]

# One match a line. The group that matched last tells the line's kind. `prose` is `plain` as well: what most lines are comes first.
_LINE = re.compile(
    r"""^(?P<indent>[^\S\n]*)(?:
      (?P<blank>(?:>[^\S\n]*)*$)
    | (?P<prose>[A-Z][a-z]+[ ,][^\n]*[^\s;{]$)
    | (?P<fence>`{3,}(?=[^`\n]*$)|~{3,})
    | (?P<maths>\$\$|\\\[|\\begin\{)
    | (?P<table>\||:?-{2,}:?[ \t]*\|)
    | (?P<rule>(?:[-*_=][ \t]*){3,}\r?$)
    | (?P<heading>\#{1,6}[ \t]+(?=\S)|(?P<mark>\*\*|__)(?:(?!(?P=mark)).)+(?P=mark):?[ \t]*\r?$)
    | (?P<item>(?:[-*+•◦▪‣●○–—]|\(?(?:\d{1,3}|[a-zA-Z]|[ivxIVX]{2,5})[.)]|[①-⑳]|\d{1,3}[、．])(?:[ \t]+|(?<=[、．①-⑳])|(?=\r?$)))
    | (?P<quote>>)
    | (?P<code>(?:
          (?:def|class|if|elif|else|for|while|try|except|finally|with)\b[^\n]*:
        | import[ ][\w.]+(?:[ ]as[ ]\w+)? | from[ ][\w.]+[ ]import\b[^\n]*
        | \#(?:include|define|ifn?def|endif|pragma|!)[^\n]*
        | [)\]}]+[;,]?
        | [^\n]*[;{]
      )[ \t]*\r?$)
    | (?P<plain>)
    )[^\n]*""",
    re.MULTILINE | re.VERBOSE,
)
_MATHS_END = {"$$": "$$", "\\[": "\\]", "\\begin{": "\\end{"}

# Kinds that stand by themselves: what comes before and after such a line is another sentence.
_APART = frozenset({"blank", "fence", "maths", "heading", "table", "rule"})
# Kinds that are code where code stands above.
_MAY_BE_CODE = frozenset({"prose", "plain", "item", "heading"})


@dataclass
class Structure:
    """What the layout of a text says about its sentences.

    starts: positions where a sentence begins because of the layout, in order.
    sealed: (start, end) ranges, in order and apart, strictly inside which no base splitter's start counts.
    code: (start, end) of the blocks of code, in order; they are sealed too.
    """

    starts: list[int] = field(default_factory=list)
    sealed: list[tuple[int, int]] = field(default_factory=list)
    code: list[tuple[int, int]] = field(default_factory=list)

    def seal(self, kind: str, start: int, end: int) -> None:
        self.sealed.append((start, end))
        if kind in ("fence", "code"):
            self.code.append((start, end))


def read_structure(text: str) -> Structure:
    """Classify the lines of `text`, in time linear in its length."""
    found = Structure()
    starts = found.starts
    # What opened the display maths that is not closed yet, and where.
    opening, opened = "", 0
    above, line_above = "blank", (0, 0)
    # Code without a fence: (start of its first line, end of its last one). A single line proves nothing and stays empty.
    bare_code: list[tuple[int, int]] = []
    next_line = 0
    while next_line < len(text):
        if text[next_line] == "\n":
            opening, above = "", "blank"
            next_line += 1
            continue
        # `plain` matches where nothing else does, so there is always a match and a last group.
        line = cast("re.Match[str]", _LINE.match(text, next_line))
        kind, begin, end = cast(str, line.lastgroup), line.end(1), line.end()
        indent, next_line = begin - next_line, end + 1
        if kind == "blank":
            # TeX allows no blank line inside maths: what it ends was never closed.
            opening, above = "", kind
            continue
        if opening:
            if _MATHS_END[opening] in text[begin:end]:
                found.seal("maths", opened, end)
                opening, above = "", "maths"
            continue
        if above == "code" and kind in _MAY_BE_CODE and (indent > 1 or _looks_like_code(text[begin:end].rstrip())):
            kind = "code"
        if above in _APART or (above != "marker" and _begins_sentence(kind, text[begin:end], indent, above, text[slice(*line_above)])):
            starts.append(begin)
        if kind == "fence":
            closing = _closing_fence(line["fence"]).search(text, end)
            # Without one, an answer cut off inside its code.
            end = len(text) if closing is None else closing.end()
            found.seal(kind, begin, end)
            next_line = end + 1
        elif kind == "maths" and _MATHS_END[line["maths"]] not in text[begin + 2 : end]:
            opening, opened = line["maths"], begin
        elif kind in ("heading", "table"):
            found.seal(kind, begin, end)
        elif kind == "item":
            # A marker alone on its line waits for its item.
            behind = line.end("item")
            kind = "item" if text[behind:end].strip() else "marker"
            found.sealed.append((begin, behind + 1))
        elif kind == "code":
            bare_code.append((bare_code.pop()[0], end) if above == "code" else (begin, begin))
        above, line_above = kind, (begin, end)
    for start, end in bare_code:
        if start < end:
            found.seal("code", start, end)
    found.sealed.sort()
    found.code.sort()
    return found


@lru_cache(maxsize=64)
def _closing_fence(opening: str) -> re.Pattern[str]:
    """A line that closes the block of code that `opening` opened, with the line break before it."""
    return re.compile(rf"\n[^\S\n]*{opening[0]}{{{len(opening)},}}[^\S\n]*$", re.MULTILINE)


def _looks_like_code(content: str) -> bool:
    """Whether a line behind a line of code is code as well."""
    return content[0].islower() or content[0] in "#/@<$_)]}" or " = " in content


def _begins_sentence(kind: str, content: str, indent: int, above: str, above_content: str) -> bool:
    """Whether a line starts a sentence, by its kind and by the line above it, which stands by itself in no other way."""
    if kind in _APART or kind == "item" or (kind == "quote") != (above == "quote"):
        return True
    if kind == above == "code":
        return False
    last = above_content.rstrip()[-1]
    if last == ":":
        return True
    # Indented lines are code without a fence or go on with the item above; closing brackets belong to what they close.
    if indent >= 4 or content[0] in ")]},.;" or last in ",({[\\":
        return False
    if content.lstrip(">*_(\"'“‘ ")[:1].islower():
        # Wrapped prose goes on in small letters. A formula or an address does not go on with the line above.
        return last not in ";{}" and ("=" in content or content.startswith("http"))
    return True
