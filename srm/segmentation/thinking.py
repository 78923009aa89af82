"""The block of thoughts that opens a response, for models that leave it out of the reward."""

from __future__ import annotations

import re

__all__ = ["TAG", "behind_thinking"]

TAG = r"</?think(?:ing)?>"
_OPENING = re.compile(r"\s*<think(?:ing)?>")
_CLOSING = re.compile(r"</think(?:ing)?>\s*")
_ANY_OPENING = re.compile(r"<think(?:ing)?>")


def behind_thinking(text: str) -> int:
    """Where the answer begins behind the thinking block that opens `text`.

    The block's first tag may be missing, where a generation prompt writes it. White space behind the block belongs to it.

    Args:
        text: a response.

    Returns:
        0 where it opens with no such block, its length where the block is not closed.
    """
    start = 0
    while block := _OPENING.match(text, start):
        closing = _CLOSING.search(text, block.end())
        if closing is None:
            return len(text)
        start = closing.end()
    if not start and (closing := _CLOSING.search(text)) and not _ANY_OPENING.search(text, 0, closing.start()):
        return closing.end()
    return start
