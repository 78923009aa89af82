"""The fuzz lane finds what it looks for: tracebacks, hangs, wrong rows, and lines that are none."""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import Any

import pytest
from hypothesis import strategies as st

from tests.fuzz import harness
from tests.fuzz.harness import Hang, fuzz, run, wrong


@pytest.fixture(autouse=True)
def _own_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "figures", Counter())
    monkeypatch.setattr(harness, "faults", {})
    monkeypatch.setattr(harness, "_total_weight", 0)


def printing(err: str, code: int) -> Any:
    def main(argv: list[str]) -> int:
        print(err, file=sys.stderr)
        return code

    return main


@pytest.mark.parametrize(
    ("main", "message"),
    [
        (printing("srm-x: no", 2), "exit code 2"),
        (printing("srm-x: \x1b[2J", 1), "reached the terminal"),
        (printing("Traceback", 1), "no line of srm-x"),
        (printing("srm-x: " + "a" * 5000, 1), "a line of 5007 characters"),
        (lambda argv: sys.exit(2), "exit code 2"),
    ],
)
def test_what_is_no_line_is_found(main: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        run(main, [], "srm-x")
    assert run(printing("srm-x: no", 1), [], "srm-x").line == "srm-x: no"


def test_hangs_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "PATIENCE", 0.05)

    def main(argv: list[str]) -> int:
        try:
            time.sleep(9)
        except Exception:
            return 0
        return 0

    with pytest.raises(Hang):
        run(main, [], "srm-x")


def test_a_fault_fails_the_test_and_is_counted_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(number: int) -> None:
        if number > 5:
            raise wrong("six")

    with pytest.raises(AssertionError, match="wrong row: six"):
        fuzz(examples=200, number=st.integers(0, 99))(check)()
    monkeypatch.setattr(harness, "SECONDS", 0.5)
    fuzz(examples=1, number=st.integers(0, 99))(check)()
    # Once, however often it was met.
    assert harness.figures["wrong rows"] == len(harness.faults) == 1
