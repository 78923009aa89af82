"""Text of data and file names for a terminal: what would steer it is written out instead."""

from __future__ import annotations

import re

__all__ = ["visible"]

# Control characters but for tab and line feed, C1 with its one-byte CSI and OSC, the controls that reorder text, and half surrogate pairs,
# which no stream can print.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    r"""`text` with characters that move the cursor, set titles or clipboards, hide or reorder words written as `\x1b` or `\u202e`.

    Args:
        text: from a row, a path or an error.
    """
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
