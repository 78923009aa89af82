"""What every fuzz test shares: a command run under a watchdog, what must hold of it, and the figures of the run.

`fuzz` makes a test of a check and its strategies. In `make test` it looks at a fixed number of the same inputs each time; with
SRM_FUZZ_SECONDS in the environment (`make fuzz`) it draws new ones until its share of that time is over, and goes on behind a fault.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import os
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy

# Longer than any of these inputs takes on a busy machine.
PATIENCE = 20
SECONDS = float(os.environ.get("SRM_FUZZ_SECONDS", 0))

figures: Counter[str] = Counter()
faults: dict[str, str] = {}
# How many tests share SRM_FUZZ_SECONDS; each `fuzz` adds its weight.
_total_weight = 0


class Hang(BaseException):
    """An input that took too long. No `Exception`, so that nothing on its way makes a bad row of it."""


@dataclass
class Result:
    """What a command did: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The error, the last line."""
        return self.err.strip().splitlines()[-1] if self.err.strip() else ""


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Count an input, and stop it where it takes too long."""

    def stop(signal_number: int, frame: FrameType | None) -> None:
        raise Hang(f"took more than {PATIENCE} s")

    figures["inputs"] += 1
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(main: Callable[[list[str]], int], argv: list[str], name: str) -> Result:
    """Run a command, which must end with 0, or with 1 and one line. Whatever it raises is a fault."""
    out, err = io.StringIO(), io.StringIO()
    with watched(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(argv)
        except SystemExit as stopped:
            # Only --help ends so, with 0.
            code = stopped.code if isinstance(stopped.code, int) else 2
    result = Result(code, out.getvalue(), err.getvalue())
    figures[f"exit {code}"] += 1
    assert code in (0, 1), f"{argv}: exit code {code}"
    steering = [character for character in result.out + result.err if character in "\x1b\x07\x9b\x9d\u202e"]
    assert not steering, f"{argv}: {steering} reached the terminal"
    if code == 1:
        assert result.line.startswith(f"{name}: "), f"{argv}: no line of {name}: {result.err[-500:]}"
        assert len(result.line) < 2500, f"{argv}: a line of {len(result.line)} characters"
    return result


def wrong(message: str) -> AssertionError:
    """An error for a row whose score is another row's."""
    return AssertionError(f"wrong row: {message}")


def fuzz(*, examples: int, weight: int = 1, **strategies: SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a test of `check(**drawn, **fixtures)`.

    examples: how many inputs `make test` draws. weight: the test's share of SRM_FUZZ_SECONDS.
    """
    global _total_weight
    _total_weight += weight

    def decorate(check: Callable[..., None]) -> Callable[..., None]:
        once = settings(
            max_examples=200 if SECONDS else examples,
            derandomize=not SECONDS,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )(given(**strategies)(check))

        @functools.wraps(check)
        def test(**fixtures: Any) -> None:
            if not SECONDS:
                once(**fixtures)
                return
            end = time.monotonic() + SECONDS * weight / _total_weight
            while time.monotonic() < end:
                try:
                    once(**fixtures)
                except (Exception, Hang) as error:
                    _note(error)

        signature = inspect.signature(check)
        # pytest reads from it which fixtures the test wants.
        test.__signature__ = signature.replace(parameters=[p for n, p in signature.parameters.items() if n not in strategies])  # type: ignore[attr-defined]
        del test.__wrapped__  # type: ignore[attr-defined]
        return test

    return decorate


def _note(error: BaseException) -> None:
    kind = "hangs" if isinstance(error, Hang) else "wrong rows" if "wrong row" in str(error) else "tracebacks"
    place = traceback.extract_tb(error.__traceback__)[-1]
    name = f"{kind}: {type(error).__name__} at {place.filename}:{place.lineno}"
    if name not in faults:
        figures[kind] += 1
        faults[name] = "".join(traceback.format_exception(error))[-3000:]
