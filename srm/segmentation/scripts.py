# ruff: noqa: RUF001  # Punctuation of other scripts is the subject of this file.
"""Sentence ends that Punkt does not look for: ellipses, the terminators of scripts other than Latin, and the end of a model's thoughts."""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = ["CLOSERS", "TERMINATORS", "script_starts"]

_EMOJI = "\u2600-\u27bf\ufe0f\u200d\U0001f1e6-\U0001f1ff\U0001f300-\U0001faff"
# What may stand between a terminator and the end of its sentence: quotes, brackets, Markdown emphasis, footnote marks such as [12], emoji.
CLOSERS = rf"(?:[\"'”’“‘»«›)\]}}*_~`」』】》〉）］｝〗〙]|[ ]?\[\^?\d{{1,3}}\]|[ ]?[{_EMOJI}]+)*"

# Full-width and half-width CJK, then Devanagari, Arabic, Urdu, Armenian, Ethiopic, Burmese, Khmer, Tibetan, Mongolian, Syriac, N'Ko,
# Ol Chiki.
TERMINATORS = "。！？｡‼⁇⁈⁉।॥؟۔։።፧፨။។៕༎᠃᠉܀܁܂߹᱾᱿"
_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3"

# A class of characters in front makes a search fast, so the look-behinds come second.
_FOREIGN = re.compile(rf"[{TERMINATORS}．](?<!\d．)[{TERMINATORS}．.!?…]*{CLOSERS}\s*")
# An ASCII terminator between two CJK characters.
_BETWEEN_CJK = re.compile(rf"[.!?](?<=[{_CJK}].)[.!?]*{CLOSERS}(?=[{_CJK}])")
_ELLIPSIS = re.compile(rf"(?:\.\.(?<![.…]..)|…(?<![.…].))[.…!?]*{CLOSERS}\s+(?P<next>[\"'“‘«(\[*_]*(?P<first>\w))")
_END_OF_THOUGHTS = re.compile(r"</think(?:ing)?>\s*")


def script_starts(text: str) -> Iterator[int]:
    """Starts of sentences behind an ellipsis, a terminator of another script or a thought, in no particular order."""
    if ".." in text or "…" in text:
        # An ellipsis ends a sentence where a capital follows; otherwise it is a pause.
        yield from (match.start("next") for match in _ELLIPSIS.finditer(text) if match["first"].isupper())
    if "</think" in text:
        yield from (match.end() for match in _END_OF_THOUGHTS.finditer(text))
    if text.isascii():
        return
    for match in _FOREIGN.finditer(text):
        # A Japanese quote with the particle "to" behind it: the sentence goes on.
        if not (text.startswith("と", match.end()) and text[match.end() - 1] in "」』"):
            yield match.end()
    yield from (match.end() for match in _BETWEEN_CJK.finditer(text))
