"""What would steer a terminal is written out; all other text stays as it is."""

from __future__ import annotations

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srm.views.visible import visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", r"\x1b[2J"),
        ("\x1b]0;owned\x07", r"\x1b]0;owned\x07"),
        ("\x1b]8;;http://x\x1b\\link", r"\x1b]8;;http://x\x1b\link"),
        ("\x1b]52;c;aGk=\x07", r"\x1b]52;c;aGk=\x07"),
        ("\x9b2J\x9d0;x\x9c", r"\x9b2J\x9d0;x\x9c"),
        ("a\rb\x08c\x00\x7f", r"a\rb\x08c\x00\x7f"),
        ("user\u202etxt.exe\u2066", r"user\u202etxt.exe\u2066"),
        ("\ud800", r"\ud800"),
        ("tab\tand\nline", "tab\tand\nline"),
        ("Grüße, 今天, مرحبا بك, 👩‍👩‍👧, [/INST] [bold]", "Grüße, 今天, مرحبا بك, 👩‍👩‍👧, [/INST] [bold]"),
    ],
)
def test_what_is_shown(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(st.text(st.characters(exclude_categories=())))
def test_nothing_that_steers_is_left(text: str) -> None:
    shown = visible(text)
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cs") and c not in "\t\n"]
    assert not [c for c in shown if unicodedata.bidirectional(c) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")]
    assert visible(shown) == shown


def test_every_control_character_is_known() -> None:
    controls = [chr(c) for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c)) == "Cc" and chr(c) not in "\t\n"]
    assert all(visible(control) != control for control in controls)
