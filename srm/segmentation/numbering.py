"""Numbered points inside a line: "We need three things: 1. Flour. 2. Eggs. 3. Milk." A base splitter cuts behind each number."""

from __future__ import annotations

import re

__all__ = ["join_markers", "mend_numbering"]

_NUMBER = re.compile(r"(?<!\S)\(?(\d{1,2})[.)]\s+\Z")
_MARKER = re.compile(r"\(?(?:\d{1,3}|[A-Za-z])[.)][ \t]*(?:\r?\n)?[ \t]*")


def mend_numbering(text: str, starts: list[int]) -> list[int]:
    """`starts`, in order, with those behind the numbers of a list that counts 1, 2, ... moved to before the number."""
    if not any(text[start - 3].isdigit() and text[start - 4] in " \t(" for start in starts if start > 3):
        # No number inside a line.
        return starts
    # A number as close as this to the start of a sentence; the test in front keeps the search off ordinary sentences.
    numbers = [
        (at, found.start(), int(found[1]))
        for at, start in enumerate(starts)
        if start > 2 and text[start - 3].isdigit() and text[start - 2] in ".)" and (found := _NUMBER.search(text, max(0, start - 6), start))
    ]
    mended = list(starts)
    run: list[tuple[int, int, int]] = []
    for number in [*numbers, (0, 0, 0)]:
        if run and number[2] == run[-1][2] + 1:
            run.append(number)
            continue
        if len(run) > 1:
            for at, before, _ in run:
                mended[at] = before
        run = [number] if number[2] == 1 else []
    return mended


def join_markers(text: str, starts: list[int]) -> list[int]:
    """`starts`, in order, without those behind a sentence that is only the marker of a list: "2. " or "(b) "."""
    return [
        start
        for start, before in zip(starts, [0, *starts], strict=False)
        if start - before > 8 or start == before or _MARKER.fullmatch(text, before, start) is None
    ]
